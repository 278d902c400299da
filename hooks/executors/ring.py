"""ring: a single ring is the backend's own all-reduce on a group in the plan's order, because the
rings of gloo and NCCL follow the rank order of the group. Several rings at once are trees."""

from __future__ import annotations

import torch
from torch.futures import Future

from trainmesh.errors import PlanError
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.messages import by_messages
from trainmesh.hooks.executors.native import all_reduce
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan

__all__ = ["RingExecutor", "ring"]


def ring(plan: Plan, group_factory: GroupFactory) -> Executor:
    """The executor of a ring plan."""
    return by_messages(plan, group_factory) if plan.rings else RingExecutor(plan, group_factory)


class RingExecutor:
    """The backend's all-reduce, around ``plan.order``."""

    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None:
        group = group_factory.new_group(plan.order)
        if group is None:
            raise PlanError(f"ring: rank {group_factory.rank} is not in the order")
        self._group_factory = group_factory
        self._group = group

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        return all_reduce(self._group, buffer, mark)

    def close(self) -> None:
        self._group_factory.release(self._group)
