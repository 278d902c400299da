"""The run directory of a router: how its processes and ``trainmesh endpoints`` find each other.

``<root>/serve-<pid>-.../`` (mode 0700) is beside the run directories of training jobs
(``trainmesh.rundir``)::

    lock             held by the router for as long as it lives (``trainmesh.owned``)
    router.json      RouterInfo: who made it, where its admin server is
    config.json      the validated Config
    snapshot.json    what the workers decide with
    board-<n>        SharedCounters; a new number with each reload
    worker-<n>.json  WorkerWords: what only a worker knows, in words
    admin.token      the admin's token where serve.yaml names none (mode 0600)
    audit.jsonl      admin actions and refusals, unless serve.yaml says where

Files that others read are replaced atomically. A directory whose owner is dead is swept away by
the next router.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.owned import OwnedDirectory
from trainmesh.rundir import write_atomically
from trainmesh.wire import decode, encode

__all__ = ["RouterInfo", "ServeRun", "WorkerWords", "live_routers", "sweep"]

PREFIX = "serve-"


class RouterInfo(Struct, frozen=True, kw_only=True):
    """Who made a run directory and where it listens."""

    name: str
    pid: int
    listen: str = ""
    """Base URL for clients."""
    admin: str = ""
    """Base URL of the admin server."""
    ledger: str = ""
    """Folder of the ledger; empty: none is kept."""
    etcd: str = ""
    """URL of the store that it shares with other routers; empty: it is alone."""
    started_unix_s: float = 0.0


class WorkerWords(Struct, frozen=True, kw_only=True):
    """What one worker knows of its endpoints: model -> endpoint -> why it gets no requests.
    ``missing``: model -> why none of them is in service."""

    excluded: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}


class ServeRun(OwnedDirectory):
    """Paths inside one run directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.router = path / "router.json"
        self.config = path / "config.json"
        self.snapshot = path / "snapshot.json"
        self.token = path / "admin.token"
        self.audit = path / "audit.jsonl"

    def counters(self, generation: int) -> Path:
        return self.path / f"board-{generation}"

    def words(self, worker: int) -> Path:
        return self.path / f"worker-{worker}.json"

    @classmethod
    def create(cls, name: str) -> ServeRun:
        """Make the directory of a router that is just starting in this process.

        Raises:
            ConfigError: the root directory can't be made or belongs to somebody else.
        """
        run = cls.make(f"{PREFIX}{os.getpid()}-")
        run.publish(RouterInfo(name=name, pid=os.getpid(), started_unix_s=time.time()))
        return run

    def publish(self, info: RouterInfo) -> None:
        """Write router.json; again once the addresses are known."""
        write_atomically(self.router, encode(info))

    def info(self) -> RouterInfo | None:
        """The owner, or None if the file is missing or damaged."""
        try:
            return decode(self.router.read_bytes(), RouterInfo, what=str(self.router))
        except (OSError, WireError):
            return None

    def worker_words(self, worker: int) -> WorkerWords:
        """The words of a worker; nothing if it has not said any."""
        path = self.words(worker)
        try:
            return decode(path.read_bytes(), WorkerWords, what=str(path), max_bytes=16 << 20)
        except (OSError, WireError):
            return WorkerWords()


def live_routers() -> list[tuple[ServeRun, RouterInfo]]:
    """The run directories of this user's routers that run on this machine, oldest first."""
    runs = ServeRun.every(PREFIX)
    known = [(run, run.info()) for run in runs if run.is_here and not run.is_dead]
    found = [(run, info) for run, info in known if info is not None]
    return sorted(found, key=lambda item: item[1].started_unix_s)


def sweep() -> list[Path]:
    """Remove the directories of routers that have died; returns what was removed."""
    return [run.path for run in ServeRun.every(PREFIX) if run.info() and run.remove_if_dead()]
