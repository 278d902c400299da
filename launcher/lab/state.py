"""A lab's directory, and the removal of labs whose owner has died.

``<runs root>/lab-XXXXXXXX/`` holds ``lab.json`` (LabInfo), the hosts' run directories and logs. The
kernel removes a dead lab's processes and devices by itself; only the directory can be left.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.owned import OwnedDirectory
from trainmesh.rundir import process_start_ticks, write_atomically
from trainmesh.wire import decode, encode

__all__ = ["LabInfo", "make_directory", "sweep_labs", "write_info"]

PREFIX = "lab-"
INFO = "lab.json"


class LabInfo(Struct, frozen=True, kw_only=True):
    """The process that holds a lab's namespaces; ``holder_ticks`` is its start time, so that a
    reused pid is noticed. Both are 0 before there is one."""

    holder_pid: int = 0
    holder_ticks: int = 0


def make_directory() -> OwnedDirectory:
    """A new directory for a lab of this process.

    Raises:
        ConfigError: it can't be made.
    """
    made = OwnedDirectory.make(PREFIX)
    write_info(made.path, holder_pid=0)
    return made


def write_info(path: Path, *, holder_pid: int) -> None:
    """Say in ``path`` which process holds the lab (0: none yet)."""
    ticks = (process_start_ticks(holder_pid) or 0) if holder_pid else 0
    write_atomically(path / INFO, encode(LabInfo(holder_pid=holder_pid, holder_ticks=ticks)))


def sweep_labs() -> list[Path]:
    """End and remove labs whose owner is dead; returns their directories."""
    gone = []
    for lab in OwnedDirectory.every(PREFIX):
        path = lab.path / INFO
        try:
            info = decode(path.read_bytes(), LabInfo, what=str(path))
        except (OSError, WireError):
            continue
        if not lab.is_dead:
            continue
        # It ends by itself within a moment of its owner, unless it was stopped.
        if info.holder_pid and process_start_ticks(info.holder_pid) == info.holder_ticks:
            os.kill(info.holder_pid, signal.SIGKILL)
        if lab.remove_if_dead():
            gone.append(lab.path)
    return gone
