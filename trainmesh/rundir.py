"""Run directories: how the processes of one job, router or lab on one node find each other.

That of a job, ``<root>/<job>-<pid>/`` (mode 0700), is made by ``trainmesh launch`` and removed when
it ends::

    lock           held by the launcher for as long as it lives (``trainmesh.owned``)
    owner.json     RunInfo: who made it
    agent.sock     Unix datagram socket: RankReports go in
    hint.json      the newest Hint; ranks look at it once a step
    status.json    the newest JobStatus; the launcher's progress line reads it
    status.time    when that came, on this machine's monotonic clock (s)
    record.jsonl   RecordLines written by the coordinator; the report is made from it
    troubles.json  what is wrong with these processes, kept by the launcher
    outcome.json   which attempts of torchrun have failed, kept by the launcher
    seen, unseen   a process met a module that communicates; rank 0's ended without one
    etcd/          data of the embedded etcd
    *.log          output of etcd, agent and coordinator

Files that others read are replaced atomically. A directory whose owner is dead is swept away
by the next launch. ``RunDirectory`` is what those of jobs, routers and labs have in common.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from msgspec import Struct, structs

from trainmesh.errors import ConfigError, WireError
from trainmesh.owned import OwnedDirectory
from trainmesh.types import JobStatus
from trainmesh.wire import decode, encode

__all__ = [
    "ENV_RUN_DIR",
    "OwnerInfo",
    "RunDir",
    "RunDirectory",
    "RunInfo",
    "job_slug",
    "process_start_ticks",
    "remove_empty_logs",
    "socket_address",
    "write_atomically",
]

ENV_RUN_DIR = "TRAINMESH_RUN_DIR"
MAX_SOCKET_PATH_BYTES = 107
"""sun_path of sockaddr_un holds 108 bytes with its NUL (unix(7))."""


class OwnerInfo(Struct, frozen=True, kw_only=True):
    """Who made a run directory. Each kind adds what others must know of its owner."""

    pid: int
    created_unix_s: float = 0.0


Info = TypeVar("Info", bound=OwnerInfo)


class RunDirectory(OwnedDirectory, Generic[Info]):
    """An owned directory with a file in which its owner says who it is."""

    OWNER_FILE: ClassVar[str]
    PREFIX: ClassVar[str] = ""
    """With which the names of all of this kind begin."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.owner = path / self.OWNER_FILE
        self._published: Info | None = None

    @classmethod
    @abstractmethod
    def info_type(cls) -> type[Info]:
        """What the owner's file holds."""

    @classmethod
    def make_for(cls, info: Info, prefix: str) -> Self:
        """A new directory, owned by this process, whose name begins with ``prefix``.

        Raises:
            ConfigError: it can't be made or written.
        """
        run = cls.make(prefix)
        try:
            run.publish(info)
        except OSError as error:
            run.remove()
            raise ConfigError(
                f"can't write {run.owner}: {error.strerror}; set XDG_RUNTIME_DIR to a directory "
                "with some space"
            ) from error
        return run

    def publish(self, info: Info) -> None:
        """Write the owner's file; again once more is known."""
        self._published = info
        write_atomically(self.owner, encode(info))

    def restore(self) -> bool:
        gone = super().restore()
        if self._published is not None and not self.owner.exists():
            self.publish(self._published)
        return gone

    def info(self) -> Info | None:
        """The owner, or None if the file is missing or damaged."""
        try:
            return decode(self.owner.read_bytes(), self.info_type(), what=str(self.owner))
        except (OSError, WireError):
            return None

    @classmethod
    def live(cls) -> list[tuple[Self, Info]]:
        """Those of this user whose owners run on this machine, oldest first."""
        here = [run for run in cls.every(cls.PREFIX) if run.is_here and not run.is_dead]
        known = [(run, info) for run in here if (info := run.info()) is not None]
        return sorted(known, key=lambda item: item[1].created_unix_s)

    @classmethod
    def sweep(cls) -> list[Path]:
        """Remove those whose owners have died, and what else these have left; returns what was
        removed. One whose owner's file is missing or damaged is left alone."""
        gone: list[Path] = []
        for run in cls.every(cls.PREFIX):
            info = run.info()
            if info is None:
                continue
            with run.proof_of_death() as is_dead:
                if is_dead:
                    gone += [run.path, *run.remove_leftovers(info)]
                    run.remove()
        return gone

    def remove_leftovers(self, info: Info) -> list[Path]:
        """Remove what a dead owner has left elsewhere; returns what was removed."""
        return []


class RunInfo(OwnerInfo, frozen=True, kw_only=True):
    """Who made a job's run directory, and where the job's store is."""

    job: str
    etcd: str
    log_dir: str = ""
    """Torchrun's temporary log directory; empty where the user chose one."""


class RunDir(RunDirectory[RunInfo]):
    """Paths inside the run directory of a job."""

    OWNER_FILE = "owner.json"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.socket = path / "agent.sock"
        self.hint = path / "hint.json"
        self.status = path / "status.json"
        self.status_time = path / "status.time"
        self.record = path / "record.jsonl"
        self.troubles = path / "troubles.json"
        self.outcome = path / "outcome.json"
        self.seen = path / "seen"
        self.unseen = path / "unseen"
        self.etcd_data = path / "etcd"

    @classmethod
    def info_type(cls) -> type[RunInfo]:
        return RunInfo

    @classmethod
    def create(cls, info: RunInfo) -> Self:
        """Make the directory of ``info``'s job; it belongs to this process.

        Raises:
            ConfigError: the directory can't be made or written.
        """
        return cls.make_for(info, f"{job_slug(info.job)[:24]}-")

    def note_logs(self, path: str) -> None:
        """Keep in the owner's file where torchrun's temporary logs are, if the disk takes it."""
        if self._published is None:
            return
        try:
            self.publish(structs.replace(self._published, log_dir=path))
        except OSError:
            pass  # without it a later launch leaves these logs where they are

    def read_status(self) -> JobStatus | None:
        """The newest status of the job; None if none has come, or none that can be read."""
        try:
            return decode(self.status.read_bytes(), JobStatus, what=str(self.status))
        except (OSError, WireError):
            return None

    def remove_leftovers(self, info: RunInfo) -> list[Path]:
        logs = Path(info.log_dir)
        return [logs] if info.log_dir and remove_empty_logs(logs) else []


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` so that a reader sees the old bytes or the new ones, never a mixture.

    Raises:
        OSError: it can't be written; its ``filename`` is ``path``, which that of a full disk lacks.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def job_slug(name: str) -> str:
    """``name`` as a safe path and key component: letters, digits, ``.``, ``_`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:64] or "job"


def process_start_ticks(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def remove_empty_logs(path: Path) -> bool:
    """Remove torchrun's log directory unless a log or error file in it holds anything; whether
    it was removed."""
    try:
        if any(file.stat().st_size for file in path.rglob("*") if file.is_file()):
            return False
        shutil.rmtree(path)
    except OSError:
        return False
    return True


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """A name for the Unix socket at ``path``, however long that is; good inside the context.

    Raises:
        OSError: ``path`` is too long, and its directory is gone.
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
