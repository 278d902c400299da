"""Plans for HSDP's all-reduce over the replicate dimension.

In a mesh of R replicas of S shards there are S replica groups of R ranks. A plan for R ranks is
carried out in all of them at once, its ranks being places in a group. Agreement spans the whole
job, so all groups switch at the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from trainmesh.errors import PlanError
from trainmesh.hooks import world
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.observer import ModuleObserver
from trainmesh.hooks.route.compressed import NO_CODEC
from trainmesh.hooks.route.route import check
from trainmesh.hooks.switching import Switching
from trainmesh.types import Algorithm, Hint

__all__ = ["ReplicaGroupFactory", "ReplicaPlans", "replica_groups"]

GAP = 2
"""A rank in its step n has been waited for by its replicas in step n - 1, and these by their
shards in step n - 2: that is the whole mesh."""


def replica_groups(mesh: torch.Tensor, dimension: int) -> tuple[tuple[int, ...], ...]:
    """The ranks along ``dimension`` of ``mesh``, for each place in the other dimensions."""
    groups = mesh.movedim(dimension, -1).reshape(-1, mesh.shape[dimension])
    return tuple(tuple(group) for group in groups.tolist())


class ReplicaGroupFactory(GroupFactory):
    """Makes a group in every replica group where an executor asks for one.

    ``groups`` are all replica groups of the job: every rank is in one, and each makes the groups
    of all, in the same order, as ``GroupFactory.new_group`` demands.
    """

    def __init__(self, parent: dist.ProcessGroup, groups: Sequence[Sequence[int]]) -> None:
        super().__init__(parent)
        self._groups = groups

    def new_group(
        self, ranks: Sequence[int], *, backend: str | None = None
    ) -> dist.ProcessGroup | None:
        own = None
        for members in self._groups:
            made = super().new_group([members[place] for place in ranks], backend=backend)
            own = made or own
        return own


class ReplicaPlans:
    """The plan in force for one FSDP2 root; every rank of the job makes one at the same time."""

    def __init__(self, group_factory: ReplicaGroupFactory, observer: ModuleObserver) -> None:
        self.executor: Executor | None = None
        """None: what FSDP2 would do."""
        self._group_factory = group_factory
        self._switching = Switching(world.current(), observer, self, GAP)

    @property
    def epoch(self) -> int:
        return self._switching.epoch

    def begin_step(self, step: int, device: torch.device) -> None:
        """Switch if all ranks agreed to, and take part in the next round."""
        self._switching.begin_step(step, device)

    def close(self) -> None:
        """The root has ended: groups and threads end with it."""
        self.put_in_force(None)

    def check(self, hint: Hint) -> bool:
        check(hint, self._group_factory.world_size)
        if hint.codec != NO_CODEC:
            raise PlanError(f"replicas of FSDP2: codec {hint.codec} is for DDP only")
        return True

    def build(self, hint: Hint) -> Executor | None:
        if hint.plan.algorithm == Algorithm.NATIVE:
            return None
        return load(hint.plan.algorithm)(hint.plan, self._group_factory)

    def put_in_force(self, built: Executor | None) -> None:
        old, self.executor = self.executor, built
        if old is not None:
            old.close()

    def discard(self, built: Executor | None) -> None:
        if built is not None:
            built.close()
