"""A lab's directory, and the removal of labs whose owner has died.

``<runs root>/lab-XXXXXXXX/`` holds ``lab.json`` (LabInfo), the hosts' run directories and logs. The
kernel removes a dead lab's processes and devices by itself; only the directory can be left.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import ConfigError, WireError
from trainmesh.rundir import process_start_ticks, runs_root, write_atomically
from trainmesh.wire import decode, encode

__all__ = ["LabInfo", "leftovers", "make_directory", "remove", "sweep_labs", "write_info"]

PREFIX = "lab-"
INFO = "lab.json"


class LabInfo(Struct, frozen=True, kw_only=True):
    """The process that owns a lab, and the one that holds its namespaces; ``*_ticks`` are their
    start times, so that a reused pid is noticed."""

    pid: int
    start_ticks: int
    holder_pid: int = 0
    holder_ticks: int = 0
    created_unix_s: float = 0.0


def make_directory() -> Path:
    """A new directory for a lab of this process.

    Raises:
        ConfigError: it can't be made.
    """
    root = runs_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    except OSError as error:
        raise ConfigError(
            f"can't make a directory for the lab under {root}: {error.strerror}; set "
            "XDG_RUNTIME_DIR to a writable directory"
        ) from error
    write_info(path, holder_pid=0)
    return path


def write_info(path: Path, *, holder_pid: int) -> None:
    """Say in ``path`` that this process owns the lab, and which one holds it (0: none yet)."""
    info = LabInfo(
        pid=os.getpid(),
        start_ticks=process_start_ticks(os.getpid()) or 0,
        holder_pid=holder_pid,
        holder_ticks=(process_start_ticks(holder_pid) or 0) if holder_pid else 0,
        created_unix_s=time.time(),
    )
    write_atomically(path / INFO, encode(info))


def remove(path: Path) -> None:
    """Remove a lab's directory, and the root if nothing else is in it."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.parent.rmdir()
    except OSError:
        pass  # other runs are in it


def leftovers() -> list[tuple[Path, LabInfo]]:
    """Directories of labs whose owner is dead."""
    found = []
    for path in sorted(runs_root().glob(f"{PREFIX}*")):
        try:
            info = decode((path / INFO).read_bytes(), LabInfo, what=str(path / INFO))
        except (OSError, WireError):
            continue
        if process_start_ticks(info.pid) != info.start_ticks:
            found.append((path, info))
    return found


def sweep_labs() -> list[Path]:
    """End and remove labs whose owner is dead; returns their directories."""
    gone = []
    for path, info in leftovers():
        # It ends by itself within a moment of its owner, unless it was stopped.
        if info.holder_pid and process_start_ticks(info.holder_pid) == info.holder_ticks:
            os.kill(info.holder_pid, signal.SIGKILL)
        remove(path)
        gone.append(path)
    return gone
