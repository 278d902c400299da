"""The run directory: how the processes of one job on one node find each other.

``<root>/<job>-<pid>/`` (mode 0700) is made by ``trainmesh launch`` and removed when it ends::

    owner.json     RunInfo: who made it
    agent.sock     Unix datagram socket: RankReports go in
    hint.json      the newest Hint; ranks look at it once a step
    status.json    the newest JobStatus; the launcher's progress line reads it
    record.jsonl   RecordLines written by the coordinator; the report is made from it
    etcd/          data of the embedded etcd
    *.log          output of etcd, agent and coordinator

Files that others read are replaced atomically. A directory whose owner is dead is swept away
by the next launch.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import ConfigError, WireError
from trainmesh.wire import decode, encode

__all__ = [
    "ENV_RUN_DIR",
    "RunDir",
    "RunInfo",
    "job_slug",
    "live_runs",
    "private_directory",
    "process_start_ticks",
    "runs_root",
    "sweep",
    "write_atomically",
]

ENV_RUN_DIR = "TRAINMESH_RUN_DIR"


class RunInfo(Struct, frozen=True, kw_only=True):
    """Who made a run directory, and where its job's store is."""

    job: str
    pid: int
    start_ticks: int
    """Start time of ``pid`` in clock ticks since boot, so that a reused pid is noticed."""
    etcd: str
    created_unix_s: float


class RunDir:
    """Paths inside one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = path / "owner.json"
        self.socket = path / "agent.sock"
        self.hint = path / "hint.json"
        self.status = path / "status.json"
        self.record = path / "record.jsonl"
        self.etcd_data = path / "etcd"

    @classmethod
    def create(cls, info: RunInfo) -> RunDir:
        """Make the directory of ``info``'s job.

        Raises:
            ConfigError: the root directory can't be made or belongs to somebody else.
        """
        run = cls(private_directory(runs_root(), f"{job_slug(info.job)[:24]}-"))
        write_atomically(run.owner, encode(info))
        return run

    def info(self) -> RunInfo | None:
        """The owner, or None if the file is missing or damaged."""
        try:
            return decode(self.owner.read_bytes(), RunInfo, what=str(self.owner))
        except (OSError, WireError):
            return None

    def remove(self) -> None:
        """Remove it, and the root if no other run is left in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.parent.rmdir()
        except OSError:
            pass  # other runs are in it


def private_directory(root: Path, prefix: str) -> Path:
    """Make a new directory that only this user can read.

    Raises:
        ConfigError: ``root`` can't be made or belongs to somebody else.
    """
    try:
        return _make_under(root, prefix)
    except OSError as error:
        raise ConfigError(
            f"can't make a run directory under {root}: {error.strerror}; set "
            "XDG_RUNTIME_DIR to a writable directory"
        ) from error


def _make_under(root: Path, prefix: str) -> Path:
    """A new private directory; a launch that ends just now may take the root away once."""
    for last_try in (False, True):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if root.stat().st_uid != os.getuid():
                raise ConfigError(
                    f"{root} belongs to another user; set XDG_RUNTIME_DIR to a directory of yours"
                )
            return Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        except FileNotFoundError:
            if last_try:
                raise
    raise AssertionError("unreachable")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` so that a reader sees the old bytes or the new ones, never a mixture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def runs_root() -> Path:
    """Where run directories live: short, because a socket path holds 107 bytes at most."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return Path(base) / "trainmesh"
    return Path(tempfile.gettempdir()) / f"trainmesh-{os.getuid()}"


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
    """The run directories of this user's running jobs, oldest first."""
    runs = [(run, info) for run, info in _all_runs() if info and _alive(info)]
    return sorted(
        ((run, info) for run, info in runs if info), key=lambda item: item[1].created_unix_s
    )


def sweep() -> list[Path]:
    """Remove the directories of dead owners; returns what was removed."""
    gone = [run for run, info in _all_runs() if info and not _alive(info)]
    for run in gone:
        run.remove()
    return [run.path for run in gone]


def _all_runs() -> list[tuple[RunDir, RunInfo | None]]:
    try:
        paths = sorted(runs_root().iterdir())
    except OSError:
        return []
    return [(run, run.info()) for run in map(RunDir, paths)]


def _alive(info: RunInfo) -> bool:
    return process_start_ticks(info.pid) == info.start_ticks
