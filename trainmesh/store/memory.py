"""A store inside one process, with etcd's rules; for tests and trials without a server."""

from __future__ import annotations

import bisect
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from trainmesh.clock import Clock, SystemClock
from trainmesh.console import note
from trainmesh.errors import FencedOut, LeaseLost, StoreError
from trainmesh.store.base import Change, Entry, Lease, Watch, WatchCallback

__all__ = ["MemoryLease", "MemoryStore"]

KEPT_REVISIONS = 1_000
"""A watch that is further behind is told to list again, as after etcd's compaction."""
POLL_S = 0.02
"""How often those who wait look for expired leases: the clock need not be the real one."""


@dataclass(frozen=True)
class _Stored:
    entry: Entry
    lease: MemoryLease | None


class MemoryStore:
    """``trainmesh.store.base.Store``; thread safe. Leases expire by ``clock``, time-outs are
    real."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._revision = 1  # an empty etcd's
        self._stored: dict[str, _Stored] = {}
        self._history: list[Change] = []  # in the order of their revisions
        self._compacted = 0
        self._leases: set[MemoryLease] = set()
        self._watches: set[_MemoryWatch] = set()
        self._leases_made = 0
        self._closed = False

    def get(self, key: str) -> Entry | None:
        with self._changed:
            self._begin()
            stored = self._stored.get(key)
            return stored.entry if stored else None

    def list(self, prefix: str) -> tuple[list[Entry], int]:
        with self._changed:
            self._begin()
            keys = sorted(key for key in self._stored if key.startswith(prefix))
            return [self._stored[key].entry for key in keys], self._revision

    def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        with self._changed:
            self._begin()
            return self._write(key, value, self._alive(lease) if lease is not None else None)

    def cas(
        self, key: str, value: bytes, *, expected_revision: int, fence: Entry | None = None
    ) -> int | None:
        with self._changed:
            self._begin()
            if fence is not None:
                held = self._stored.get(fence.key)
                if held is None or held.entry.create_revision != fence.create_revision:
                    raise FencedOut(f"{key}: another coordinator leads now")
            stored = self._stored.get(key)
            if (stored.entry.mod_revision if stored else 0) != expected_revision:
                return None
            return self._write(key, value, None)

    def delete(self, prefix: str) -> int:
        with self._changed:
            self._begin()
            return self._remove([key for key in self._stored if key.startswith(prefix)])

    def watch(self, prefix: str, callback: WatchCallback, *, start_revision: int = 0) -> Watch:
        with self._changed:
            self._begin()
            watch = _MemoryWatch(self, prefix, callback, start_revision or self._revision + 1)
            self._watches.add(watch)
        return watch

    def lease(self, ttl_s: int) -> MemoryLease:
        with self._changed:
            self._begin()
            self._leases_made += 1
            lease = MemoryLease(self, self._leases_made, ttl_s)
            self._leases.add(lease)
            return lease

    def elect(self, prefix: str, value: bytes, lease: Lease, *, timeout_s: float) -> Entry | None:
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._begin()
            mine = self._alive(lease)
            key = f"{prefix}{mine.number:x}"
            if key not in self._stored:
                self._write(key, value, mine)
            while True:
                self._alive(lease)
                oldest = min(
                    (held.entry for name, held in self._stored.items() if name.startswith(prefix)),
                    key=lambda entry: entry.create_revision,
                )
                if oldest.key == key:
                    return oldest
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(min(POLL_S, left_s))
                self._begin()

    def close(self) -> None:
        """End every watch, revoke every lease; may be called twice."""
        with self._changed:
            for lease in list(self._leases):
                lease.close()
            self._closed = True
            still_open = list(self._watches)
        for watch in still_open:
            watch.close()

    def _begin(self) -> None:
        """Every call begins with this, under the lock: time may have gone by."""
        if self._closed:
            raise StoreError("the store is closed")
        self._expire()

    def _expire(self) -> None:
        now_s = self._clock.monotonic_s()
        for lease in [held for held in self._leases if held.expire_if_due(now_s)]:
            self._end(lease)

    def _end(self, lease: MemoryLease) -> None:
        lease.ended = True
        self._leases.discard(lease)
        self._remove([key for key, stored in self._stored.items() if stored.lease is lease])

    def _alive(self, lease: Lease) -> MemoryLease:
        if not isinstance(lease, MemoryLease):
            raise TypeError(f"a lease of this store is needed, not {type(lease).__name__}")
        if lease.ended:
            raise LeaseLost("the lease has expired")
        return lease

    def _write(self, key: str, value: bytes, lease: MemoryLease | None) -> int:
        self._revision += 1
        now = self._revision
        before = self._stored.get(key)
        created = before.entry.create_revision if before else now
        self._stored[key] = _Stored(Entry(key, value, created, now), lease)
        self._publish([Change(key, value, now)])
        return now

    def _remove(self, keys: Sequence[str]) -> int:
        """One revision for all of them, none if there are none."""
        if keys:
            self._revision += 1
            for key in keys:
                del self._stored[key]
            self._publish([Change(key, None, self._revision) for key in sorted(keys)])
        return len(keys)

    def _publish(self, changes: Sequence[Change]) -> None:
        self._history.extend(changes)
        oldest = self._revision - KEPT_REVISIONS
        if oldest > self._compacted:
            self._compacted = oldest
            del self._history[: bisect.bisect_left(self._history, oldest, key=_revision)]
        self._changed.notify_all()


class MemoryLease:
    """Renewed as long as it is open, as if by a thread, until ``suspend``."""

    def __init__(self, store: MemoryStore, number: int, ttl_s: int) -> None:
        self.number = number
        self.ended = False
        self._store = store
        self._ttl_s = ttl_s
        self._expires_s: float | None = None
        self._lost = False

    @property
    def lost(self) -> bool:
        with self._store._changed:
            self._store._expire()
            return self._lost

    def suspend(self) -> None:
        """Stop renewing, as if the owner hung: it expires when its time to live has gone by."""
        with self._store._changed:
            self._expires_s = self._store._clock.monotonic_s() + self._ttl_s

    def close(self) -> None:
        with self._store._changed:
            self._store._expire()
            self._store._end(self)

    def expire_if_due(self, now_s: float) -> bool:
        """Whether the time to live has gone by at ``now_s``; from then on it is lost."""
        self._lost = self._expires_s is not None and now_s >= self._expires_s
        return self._lost


class _MemoryWatch:
    """A thread that hands on the store's history, from ``next_revision`` on."""

    def __init__(
        self, store: MemoryStore, prefix: str, callback: WatchCallback, next_revision: int
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._callback = callback
        self._next_revision = next_revision
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._store._changed:
            self._stopping = True
            self._store._watches.discard(self)
            self._store._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while changes := self._wait():
            try:
                self._callback(changes)
            except Exception:  # the receiver's bug must not end the watch, as with etcd
                note(traceback.format_exc())

    def _wait(self) -> list[Change]:
        """The next changes; none when the watch is to end."""
        store = self._store
        with store._changed:
            while not self._stopping:
                store._expire()
                if changes := self._next():
                    return changes
                store._changed.wait(POLL_S)
        return []

    def _next(self) -> list[Change]:
        store = self._store
        first, self._next_revision = self._next_revision, store._revision + 1
        if first < store._compacted:
            self._next_revision = store._compacted + 1
            return [Change("", None, store._compacted, resync=True)]
        start = bisect.bisect_left(store._history, first, key=_revision)
        return [change for change in store._history[start:] if change.key.startswith(self._prefix)]


def _revision(change: Change) -> int:
    return change.revision
