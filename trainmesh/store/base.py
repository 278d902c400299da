"""The store: a revisioned key-value map with leases, watches and fencing (etcd's model).

Revisions are the only order: every write has a larger revision than the one before, and two writers
find out about each other by a compare-and-swap on a key's revision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

__all__ = [
    "Change",
    "Entry",
    "Lease",
    "Store",
    "Watch",
    "WatchCallback",
    "claim_prefix",
    "job_prefix",
]


def job_prefix(job: str) -> str:
    """The prefix of all keys of a job: ``hint``, ``status``, ``graph``, ``reports/<node>``,
    ``agents/<node>`` and ``leader/…`` live under it."""
    return f"/trainmesh/jobs/{job}/"


def claim_prefix(job: str) -> str:
    """The prefix of the key ``holder``, which says whose the job's name is."""
    return f"/trainmesh/claims/{job}/"


class Entry(Struct, frozen=True):
    """A key's value and the revisions that created it and last changed it."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int


class Change(Struct, frozen=True):
    """One change seen by a watch. ``value`` is None for a delete. ``resync`` says that history
    was lost, to compaction or because the store was emptied or restored: the receiver must list
    the prefix again (key and value are empty)."""

    key: str
    value: bytes | None
    revision: int
    resync: bool = False


WatchCallback = Callable[[list[Change]], None]


class Watch(Protocol):
    """A running watch."""

    def close(self) -> None:
        """Stop; no callback runs after this returns."""
        ...


class Lease(Protocol):
    """A lease that is kept alive in the background until it is closed or lost."""

    @property
    def lost(self) -> bool:
        """True once the lease has expired and its keys are gone."""
        ...

    def close(self) -> None:
        """Revoke the lease (its keys are deleted at once); bounded, never raises."""
        ...


class Store(Protocol):
    """All calls take at most the store's time-out and raise ``StoreError`` after it."""

    def get(self, key: str) -> Entry | None: ...

    def list(self, prefix: str) -> tuple[list[Entry], int]:
        """Entries under ``prefix`` in key order, and the revision they were read at."""
        ...

    def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """Write; returns the new revision."""
        ...

    def cas(
        self, key: str, value: bytes, *, expected_revision: int, fence: Entry | None = None
    ) -> int | None:
        """Write if ``key`` was last changed at ``expected_revision`` (0: must not exist).

        With ``fence`` (the leader entry returned by ``elect``) also only while that entry still
        exists with the same create_revision.

        Returns:
            The new revision, or None if ``key`` has changed.

        Raises:
            FencedOut: the fence no longer holds.
        """
        ...

    def delete(self, prefix: str) -> int:
        """Delete every key that starts with ``prefix``; returns how many there were."""
        ...

    def watch(self, prefix: str, callback: WatchCallback, *, start_revision: int = 0) -> Watch:
        """Call ``callback`` with changes in order, from ``start_revision`` (0: from now on).

        Survives disconnects without loss or duplicates. Callbacks run on one thread a watch.
        """
        ...

    def lease(self, ttl_s: int) -> Lease: ...

    def elect(self, prefix: str, value: bytes, lease: Lease, *, timeout_s: float) -> Entry | None:
        """Campaign under ``prefix``; the entry that leads (its create_revision is the fencing
        token), or None if another one still leads after ``timeout_s`` (our place is kept)."""
        ...

    def close(self) -> None: ...
