"""The plug-in surface: an executor carries out a plan, one bucket at a time.

A third party adds one by the entry-point group ``trainmesh.hooks`` (``executors.registry``): the
name is the plan's ``algorithm``, the value a class with this Protocol. Its contract:

- All ranks construct it at the same step, so the constructor may be collective. If it raises on
  one rank, no rank uses it.
- ``reduce`` is called with the same buckets in the same order on every rank and returns at once;
  the future completes with the *sum* over all ranks in ``buffer`` (DDP has divided it
  already), bit for bit the same on every rank.
- It must not use the job's default process group, only groups of its own
  (``GroupFactory.new_group``):
  then ranks that disagree can time out but never mix their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch.futures import Future

from trainmesh.hooks.groups import backend_of, fresh_names, timeout_of
from trainmesh.hooks.timing import Mark
from trainmesh.hooks.world import current
from trainmesh.types import Plan

__all__ = ["Executor", "GroupFactory"]


class GroupFactory:
    """Makes and releases the process groups of executors.

    Groups have the backend and the time-out of ``parent``, the process group that DDP was
    given. Plans are carried out only where it spans the whole job, in rank order.
    """

    def __init__(self, parent: dist.ProcessGroup) -> None:
        self.parent = parent
        self.rank = parent.rank()
        self.world_size = parent.size()
        self.backend = backend_of(parent)

    def new_group(
        self, ranks: Sequence[int], *, backend: str | None = None
    ) -> dist.ProcessGroup | None:
        """A group whose ring goes through ``ranks`` in this order; None if this rank is not one
        of them.

        Every rank of the job calls this for every group in the same order, members or not:
        groups made among members only are named by their ranks, and a name that is used again
        after its first group was destroyed finds that group's stale addresses (torch 2.13).
        """
        with fresh_names(current().number):
            group = dist.new_group(
                ranks=list(ranks),
                timeout=timeout_of(self.parent),
                backend=backend or self.backend,
                sort_ranks=False,
                group_desc="trainmesh",
            )
        return group if isinstance(group, dist.ProcessGroup) else None

    def release(self, *groups: dist.ProcessGroup | None) -> None:
        """Close the sockets of ``groups``; nothing may be in flight on them. They close with their
        last reference, so every holder must drop its own."""
        for group in groups:
            # The script may have destroyed all groups already, and made the job's anew.
            if group is not None and group in dist.distributed_c10d._world.pg_map:
                dist.destroy_process_group(group)


class Executor(Protocol):
    """Carries out one plan on this rank."""

    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None: ...

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        """Sum ``buffer`` (1-D, or a sparse gradient; any float dtype) over all ranks, in place.

        Calls ``mark.end()`` when the sum is there.
        """
        ...

    def close(self) -> None:
        """Release groups and threads; nothing is in flight."""
        ...
