"""Facts about a process group that may be any: torch's own, or one that a script has made."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo

__all__ = ["backend_of", "gloo_options_like", "job_size", "spans_the_job", "timeout_of"]


def backend_of(group: dist.ProcessGroup) -> str:
    """Its backend's name; of a group that torch doesn't know, what it calls itself."""
    try:
        return str(dist.get_backend(group))
    except (RuntimeError, ValueError):
        return group.name()


def job_size() -> int:
    """Number of ranks of the default process group; 0 without one."""
    return dist.get_world_size() if dist.is_initialized() else 0


def spans_the_job(group: dist.ProcessGroup) -> bool:
    """Whether it is all ranks of the job in rank order, and more than one."""
    try:
        ranks = dist.get_process_group_ranks(group)
        return len(ranks) > 1 and ranks == list(range(dist.get_world_size()))
    except (RuntimeError, ValueError, KeyError):  # torch doesn't know it
        return False


def gloo_options_like(group: dist.ProcessGroup) -> Any:
    """For a small group beside ``group``: on its device, if that is gloo's. A device is a thread
    that wakes 100 times a second, and each group makes one of its own unless it is given one."""
    options = vars(ProcessGroupGloo)["_Options"]()
    options._threads = 1
    try:
        backend: Any = group._get_backend(torch.device("cpu"))
        options._devices = backend.options._devices
    except (RuntimeError, AttributeError):
        options._devices = [ProcessGroupGloo.create_default_device()]
    return options


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """The group's time-out, so that a lost peer is noticed as soon as without us."""
    for device in ("cpu", "cuda"):
        try:
            backend = group._get_backend(torch.device(device))
            return timedelta(seconds=backend.options._timeout.total_seconds())
        except (RuntimeError, AttributeError):
            continue
    return None
