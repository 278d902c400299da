"""ring(order): the backend's all-reduce on a group whose ring goes through ``plan.order``."""

from __future__ import annotations

import torch
from torch.futures import Future

from trainmesh.errors import PlanError
from trainmesh.hooks.executor import Fabric
from trainmesh.hooks.native import all_reduce
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan

__all__ = ["RingExecutor"]


class RingExecutor:
    """Gloo's and NCCL's rings follow the rank order of the group they run on."""

    def __init__(self, plan: Plan, fabric: Fabric) -> None:
        group = fabric.new_group(plan.order)
        if group is None:
            raise PlanError(f"ring: rank {fabric.rank} is not in the order")
        self._fabric = fabric
        self._group = group

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        return all_reduce(self._group, buffer, mark)

    def close(self) -> None:
        self._fabric.release(self._group)
