"""A copy of some of the store's keys, and our own values to write there, kept by one thread.

The event loop never waits for etcd: it reads the copy and hands over values. While the store does
not answer the copy stays as it was, and it is listed anew when the store is back.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue

from trainmesh.errors import LeaseLost, TrainmeshError
from trainmesh.store.base import Change, Lease, Store, Watch

__all__ = ["Copy", "StoreCache"]

LEASE_TTL_S = 5
TICK_S = 0.1
ALIVE_EVERY_S = 2.0
MAX_BACKOFF_S = 3.0
MAX_KEYS = 20_000
MAX_CHANGES = 10_000
MAX_COPY_BYTES = 2 << 20
"""etcd takes no larger values unless told to; a link graph may be this large."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A value, and when it came (monotonic seconds)."""

    value: bytes
    at_s: float


class StoreCache:
    """``start`` it, then ``close`` it. ``connect`` makes a store (it may raise any
    ``TrainmeshError``); ``on_change`` is called on the mirror's thread after the copy or
    ``problem`` has changed, and must return at once."""

    def __init__(
        self, connect: Callable[[], Store], prefixes: Sequence[str], on_change: Callable[[], None]
    ) -> None:
        self._connect = connect
        self._prefixes = tuple(prefixes)
        self._on_change = on_change
        self._lock = threading.Lock()
        self._copies: dict[str, Copy] = {}
        self._leased: dict[str, bytes] = {}
        self._wanted: dict[str, bytes] = {}
        self._problem = "not connected yet"
        self._changes: Queue[Change] = Queue(MAX_CHANGES)
        self._overflown = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-mirror", daemon=True)

    @property
    def problem(self) -> str:
        """Why the store can't be used now; empty if it can."""
        with self._lock:
            return self._problem

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what was written under the lease goes away. Blocks for some seconds at
        most."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=15.0)

    def under(self, prefix: str) -> dict[str, Copy]:
        """The copies of keys that start with ``prefix``."""
        with self._lock:
            return {key: copy for key, copy in self._copies.items() if key.startswith(prefix)}

    def publish(self, key: str, value: bytes) -> None:
        """Write ``value`` now, again in each new session, and until ``close`` only; a value that
        is still waiting is replaced."""
        with self._lock:
            self._leased[key] = value
            self._wanted[key] = value

    def put(self, key: str, value: bytes) -> None:
        """Write ``value`` to stay, as soon as the store takes it."""
        with self._lock:
            self._wanted[key] = value

    def _run(self) -> None:
        backoff_s = 0.1
        while True:
            try:
                store = self._connect()
                try:
                    self._session(store)
                finally:
                    store.close()
                backoff_s = 0.1
            except TrainmeshError as error:
                self._say(str(error))
            if self._stop.wait(backoff_s * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                return
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _say(self, problem: str) -> None:
        with self._lock:
            changed = self._problem != problem
            self._problem = problem
        if changed:
            self._on_change()

    def _session(self, store: Store) -> None:
        """Work with one store until it fails or we stop.

        Raises:
            StoreError: it failed.
        """
        watches: list[Watch] = []
        lease = store.lease(LEASE_TTL_S)
        try:
            revision = self._list(store)
            for prefix in self._prefixes:
                watches.append(store.watch(prefix, self._enqueue, start_revision=revision + 1))
            with self._lock:
                self._wanted.update(self._leased)
            self._say("")
            self._work(store, lease)
        finally:
            for watch in watches:
                watch.close()
            lease.close()
            self._drain()

    def _work(self, store: Store, lease: Lease) -> None:
        alive_s = time.monotonic()
        while not self._stop.is_set():
            if self._write(store, lease):
                alive_s = time.monotonic()
            if lease.lost:
                raise LeaseLost("the router's lease has expired")
            if time.monotonic() - alive_s > ALIVE_EVERY_S:
                store.get("/trainmesh/alive")  # raises if nobody answers
                alive_s = time.monotonic()
            self._take(store)

    def _write(self, store: Store, lease: Lease) -> bool:
        with self._lock:
            waiting = list(self._wanted.items())
        for key, value in waiting:
            store.put(key, value, lease if key in self._leased else None)
            with self._lock:
                if self._wanted.get(key) == value:
                    del self._wanted[key]
        return bool(waiting)

    def _take(self, store: Store) -> None:
        """Wait a little for changes, and take all that came."""
        try:
            changes = [self._changes.get(timeout=TICK_S)]
        except Empty:
            return
        while not self._changes.empty():
            changes.append(self._changes.get_nowait())
        if self._overflown.is_set() or any(change.resync for change in changes):
            self._overflown.clear()
            self._list(store)
        else:
            now_s = time.monotonic()
            with self._lock:
                for change in changes:
                    self._apply(change.key, change.value, now_s)
        self._on_change()

    def _list(self, store: Store) -> int:
        """Copy everything; values that did not change keep their age."""
        revision = 0
        listed: dict[str, bytes] = {}
        for prefix in self._prefixes:
            entries, at = store.list(prefix)
            revision = min(revision, at) if revision else at
            listed.update((entry.key, entry.value) for entry in entries)
        now_s = time.monotonic()
        with self._lock:
            for key in self._copies.keys() - listed.keys():
                del self._copies[key]
            for key, value in listed.items():
                self._apply(key, value, now_s)
        return revision

    def _apply(self, key: str, value: bytes | None, now_s: float) -> None:
        if value is None:
            self._copies.pop(key, None)
            return
        known = self._copies.get(key)
        full = known is None and len(self._copies) >= MAX_KEYS
        if full or len(value) > MAX_COPY_BYTES or (known is not None and known.value == value):
            return
        self._copies[key] = Copy(value, now_s)

    def _enqueue(self, changes: list[Change]) -> None:
        for change in changes:
            try:
                self._changes.put_nowait(change)
            except Full:
                self._overflown.set()
                return

    def _drain(self) -> None:
        while not self._changes.empty():
            try:
                self._changes.get_nowait()
            except Empty:
                return
