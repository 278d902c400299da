"""A lab's directory, and the removal of labs whose owner has died.

``<runs root>/lab-XXXXXXXX/`` holds ``lab.json`` (LabInfo), the hosts' run directories and logs. The
kernel removes a dead lab's processes and devices by itself; only the directory can be left.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Self

from trainmesh.rundir import OwnerInfo, RunDirectory, process_start_ticks

__all__ = ["LabDirectory", "LabInfo"]


class LabInfo(OwnerInfo, frozen=True, kw_only=True):
    """The process that holds a lab's namespaces; ``holder_ticks`` is its start time, so that a
    reused pid is noticed. Both are 0 before there is one."""

    holder_pid: int = 0
    holder_ticks: int = 0


class LabDirectory(RunDirectory[LabInfo]):
    """The directory of one lab."""

    OWNER_FILE = "lab.json"
    PREFIX = "lab-"

    @classmethod
    def info_type(cls) -> type[LabInfo]:
        return LabInfo

    @classmethod
    def create(cls) -> Self:
        """Make the directory of a lab of this process.

        Raises:
            ConfigError: the directory can't be made or written.
        """
        return cls.make_for(LabInfo(pid=os.getpid()), cls.PREFIX)

    def publish_holder(self, pid: int) -> None:
        """Say which process holds the lab's namespaces."""
        ticks = process_start_ticks(pid) or 0
        self.publish(LabInfo(pid=os.getpid(), holder_pid=pid, holder_ticks=ticks))

    def remove_leftovers(self, info: LabInfo) -> list[Path]:
        # It ends by itself within a moment of its owner, unless it was stopped.
        if info.holder_pid and process_start_ticks(info.holder_pid) == info.holder_ticks:
            os.kill(info.holder_pid, signal.SIGKILL)
        return []
