"""The run directory: how the processes of one job on one node find each other.

``<root>/<job>-<pid>/`` (mode 0700) is made by ``trainmesh launch`` and removed when it ends::

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
by the next launch.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct, structs

from trainmesh.errors import ConfigError, WireError
from trainmesh.owned import OwnedDirectory
from trainmesh.types import JobStatus
from trainmesh.wire import decode, encode

__all__ = [
    "ENV_RUN_DIR",
    "RunDir",
    "RunInfo",
    "job_slug",
    "live_runs",
    "process_start_ticks",
    "remove_empty_logs",
    "socket_address",
    "sweep",
    "write_atomically",
]

ENV_RUN_DIR = "TRAINMESH_RUN_DIR"
MAX_SOCKET_PATH_BYTES = 107
"""sun_path of sockaddr_un holds 108 bytes with its NUL (unix(7))."""


class RunInfo(Struct, frozen=True, kw_only=True):
    """Who made a run directory, and where its job's store is."""

    job: str
    pid: int
    etcd: str
    created_unix_s: float
    log_dir: str = ""
    """Torchrun's temporary log directory; empty where the user chose one."""


class RunDir(OwnedDirectory):
    """Paths inside one run directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._published: RunInfo | None = None
        self.owner = path / "owner.json"
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
    def create(cls, info: RunInfo) -> RunDir:
        """Make the directory of ``info``'s job; it belongs to this process.

        Raises:
            ConfigError: the directory can't be made or written.
        """
        run = cls.make(f"{job_slug(info.job)[:24]}-")
        try:
            run.publish(info)
        except OSError as error:
            run.remove()
            raise ConfigError(
                f"can't write {run.owner}: {error.strerror}; set XDG_RUNTIME_DIR to a directory "
                "with some space"
            ) from error
        return run

    def publish(self, info: RunInfo) -> None:
        """Write owner.json; again once more is known."""
        self._published = info
        write_atomically(self.owner, encode(info))

    def restore(self) -> bool:
        gone = super().restore()
        if self._published is not None and not self.owner.exists():
            self.publish(self._published)
        return gone

    def note_logs(self, path: str) -> None:
        """Keep in owner.json where torchrun's temporary logs are, if the disk takes it."""
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

    def info(self) -> RunInfo | None:
        """The owner, or None if the file is missing or damaged."""
        try:
            return decode(self.owner.read_bytes(), RunInfo, what=str(self.owner))
        except (OSError, WireError):
            return None


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


def live_runs() -> list[tuple[RunDir, RunInfo]]:
    """The run directories of this user's jobs that run on this machine, oldest first."""
    runs = [(run, run.info()) for run in RunDir.every() if run.is_here and not run.is_dead]
    return sorted(
        ((run, info) for run, info in runs if info), key=lambda item: item[1].created_unix_s
    )


def sweep() -> list[Path]:
    """Remove the run directories, and torchrun's logs, of launchers that have died; returns what
    was removed."""
    gone = []
    for run in RunDir.every():
        info = run.info()
        if info is not None and run.remove_if_dead():
            gone.append(run.path)
            if info.log_dir and remove_empty_logs(Path(info.log_dir)):
                gone.append(Path(info.log_dir))
    return gone


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
