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
from trainmesh.hooks.agreement import Agreement, found
from trainmesh.hooks.compressed import NO_CODEC
from trainmesh.hooks.context import RankContext, say
from trainmesh.hooks.executor import Executor, Fabric, load
from trainmesh.hooks.route import check
from trainmesh.types import Algorithm, Hint

__all__ = ["ReplicaFabric", "ReplicaPlans", "replica_groups"]


def replica_groups(mesh: torch.Tensor, dimension: int) -> tuple[tuple[int, ...], ...]:
    """The ranks along ``dimension`` of ``mesh``, for each place in the other dimensions."""
    groups = mesh.movedim(dimension, -1).reshape(-1, mesh.shape[dimension])
    return tuple(tuple(group) for group in groups.tolist())


class ReplicaFabric(Fabric):
    """Makes a group in every replica group where an executor asks for one.

    ``groups`` are all replica groups of the job: every rank is in one, and each makes the groups
    of all, in the same order, as ``Fabric.new_group`` demands.
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

    def __init__(self, fabric: ReplicaFabric, context: RankContext, device: torch.device) -> None:
        self.epoch = 0
        self.executor: Executor | None = None
        """None: what FSDP2 would do."""
        self._fabric = fabric
        self._context = context
        self._agreement = self._make_agreement(device)
        self._step = 0
        self._rejected = 0
        """Epoch of the newest hint that all ranks held and some rank could not carry out."""
        self._unusable: Hint | None = None

    def begin_step(self, step: int) -> None:
        """Switch if all ranks agreed to, and take part in the next round."""
        self._step = step
        if self._agreement is None or step == 0:
            return
        try:
            verdict = self._agreement.result()
            if verdict is not None and verdict.hint is not None:
                self._switch(self._agreement, verdict.hint)
            elif verdict is not None and verdict.split:
                self._context.note_split(step)
            self._agreement.propose(step, self._candidate())
        except RuntimeError as error:
            # A peer is gone or silent; the training's own collectives will say so.
            self._agreement = None
            self._warn(f"agreement broke, the plan in force stays: {error}")

    def _make_agreement(self, device: torch.device) -> Agreement | None:
        group = None
        try:
            group = Fabric.new_group(self._fabric, range(dist.get_world_size()), backend="gloo")
        except RuntimeError as error:
            self._warn(f"no group for the agreement: {error}")
        return found(dist.group.WORLD, group, self._context, device)

    def _candidate(self) -> Hint | None:
        """The newest hint, if this rank could carry it out."""
        hint = self._context.newest_hint()
        if hint is None or hint.epoch <= max(self.epoch, self._rejected):
            return None
        try:
            check(hint, self._fabric.world_size)
            if hint.codec != NO_CODEC:
                raise PlanError(f"codec {hint.codec} is for DDP only")
        except PlanError as error:
            if hint is not self._unusable:
                self._unusable = hint
                self._note("rejected", hint, f"replicas of FSDP2: {error}")
            return None
        return hint

    def _switch(self, agreement: Agreement, hint: Hint) -> None:
        """Every rank holds ``hint``: carry it out, if every rank can."""
        built: Executor | None = None
        ready = True
        try:
            if hint.plan.algorithm != Algorithm.NATIVE:
                built = load(hint.plan.algorithm)(hint.plan, self._fabric)
        except Exception as error:  # a plug-in may fail in any way; the vote must still be cast
            ready = False
            self._note("rejected", hint, f"can't be carried out: {error}")
        if not agreement.vote(ready):
            self._rejected = hint.epoch
            if ready:
                self._note("rejected", hint, "another rank can't carry it out")
            if built is not None:
                built.close()
            return
        old, self.executor, self.epoch = self.executor, built, hint.epoch
        self._note("switched", hint, hint.plan.algorithm)
        if old is not None:
            old.close()
        if hint.probe_bytes:
            for pair in agreement.probe(hint.epoch, hint.probe_bytes):
                self._context.reporter.pair(pair)

    def _note(self, kind: str, hint: Hint, text: str) -> None:
        self._context.note(kind, text, step=self._step, epoch=hint.epoch)

    def _warn(self, text: str) -> None:
        say(text)
        self._context.note("warning", text)
