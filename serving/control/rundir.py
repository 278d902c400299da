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
from typing import Self

from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.rundir import OwnerInfo, RunDirectory
from trainmesh.wire import decode

__all__ = ["RouterInfo", "ServeRun", "WorkerWords"]


class RouterInfo(OwnerInfo, frozen=True, kw_only=True):
    """Who made a run directory and where it listens."""

    name: str
    listen: str = ""
    """Base URL for clients."""
    admin: str = ""
    """Base URL of the admin server."""
    ledger: str = ""
    """Folder of the ledger; empty: none is kept."""
    etcd: str = ""
    """URL of the store that it shares with other routers; empty: it is alone."""


class WorkerWords(Struct, frozen=True, kw_only=True):
    """What one worker knows of its endpoints: model -> endpoint -> why it gets no requests.
    ``missing``: model -> why none of them is in service."""

    excluded: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}


class ServeRun(RunDirectory[RouterInfo]):
    """Paths inside the run directory of a router."""

    OWNER_FILE = "router.json"
    PREFIX = "serve-"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.config = path / "config.json"
        self.snapshot = path / "snapshot.json"
        self.token = path / "admin.token"
        self.audit = path / "audit.jsonl"

    def counters(self, generation: int) -> Path:
        return self.path / f"board-{generation}"

    def words(self, worker: int) -> Path:
        return self.path / f"worker-{worker}.json"

    @classmethod
    def info_type(cls) -> type[RouterInfo]:
        return RouterInfo

    @classmethod
    def create(cls, name: str) -> Self:
        """Make the directory of a router that is just starting in this process.

        Raises:
            ConfigError: the directory can't be made or written.
        """
        info = RouterInfo(name=name, pid=os.getpid(), created_unix_s=time.time())
        return cls.make_for(info, f"{cls.PREFIX}{info.pid}-")

    def worker_words(self, worker: int) -> WorkerWords:
        """The words of a worker; nothing if it has not said any."""
        path = self.words(worker)
        try:
            return decode(path.read_bytes(), WorkerWords, what=str(path), max_bytes=16 << 20)
        except (OSError, WireError):
            return WorkerWords()
