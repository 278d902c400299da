"""Facts about any process group: torch's own, or one that a script has made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

__all__ = [
    "backend_of",
    "fresh_names",
    "gloo_devices",
    "job_size",
    "small_gloo_group",
    "spans_the_job",
    "timeout_of",
]


def backend_of(group: dist.ProcessGroup) -> str:
    """Its backend's name; for a group that torch doesn't know, the name that the group gives
    itself."""
    try:
        return str(dist.get_backend(group))
    except (RuntimeError, ValueError):
        return group.name()


def job_size() -> int:
    """Number of ranks of the default process group; 0 without one."""
    return dist.get_world_size() if dist.is_initialized() else 0


def spans_the_job(group: dist.ProcessGroup) -> bool:
    """Whether it has all ranks of the job in rank order, and more than one."""
    try:
        ranks = dist.get_process_group_ranks(group)
        return len(ranks) > 1 and ranks == list(range(dist.get_world_size()))
    except (RuntimeError, ValueError, KeyError):  # torch doesn't know it
        return False


def gloo_devices(group: dist.ProcessGroup) -> list[Any]:
    """What ``group`` communicates through, for a small gloo group beside it; none if that isn't
    gloo. A device is a thread that wakes 100 times a second, and each group makes one of its own
    unless it is given one."""
    try:
        backend: Any = group._get_backend(torch.device("cpu"))
        return list(backend.options._devices)
    except (RuntimeError, AttributeError):
        return []


@contextmanager
def fresh_names(number: int) -> Iterator[None]:
    """Groups that are made meanwhile leave their addresses in the job's store under ``number``, the
    same on every rank and drawn anew for each start of the job: torchrun keeps the store when it
    restarts the workers, and torch numbers groups, so that they would find the addresses of those
    before them (torch 2.13). 0: nothing was drawn, and names are torch's."""
    if not number:
        yield
        return
    groups = dist.distributed_c10d._world.pg_map
    default = dist.distributed_c10d._get_default_group()
    backend, store = groups[default]
    groups[default] = (backend, PrefixStore(f"trainmesh/groups/{number}", store))
    try:
        yield
    finally:
        groups[default] = (backend, store)


def small_gloo_group(
    store: Store, rank: int, size: int, timeout: timedelta, devices: Sequence[Any]
) -> ProcessGroupGloo:
    """A group for little data, through ``devices``, or what GLOO_SOCKET_IFNAME says if none."""
    if not devices:
        return ProcessGroupGloo(store, rank, size, timeout)
    options = vars(ProcessGroupGloo)["_Options"]()
    options._threads, options._timeout, options._devices = 1, timeout, list(devices)
    return ProcessGroupGloo(store, rank, size, options)


def timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """The group's time-out, so that a lost peer is noticed as soon as without us."""
    for device in ("cpu", "cuda"):
        try:
            backend = group._get_backend(torch.device(device))
            return timedelta(seconds=backend.options._timeout.total_seconds())
        except (RuntimeError, AttributeError):
            continue
    return None
