"""The one hook that DDP knows: it times every bucket and runs the plan that all ranks agreed on.

DDP lets a hook be registered once, so what changes is the executor inside. Switches happen
between steps only (``agreement``). Nothing that is trainmesh's own reaches the training loop:
if the agreement breaks, the plan in force stays for good. Errors of the communication itself do
reach it, as they do without us.
"""

from collections.abc import Callable
from time import monotonic_ns

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.errors import PlanError
from trainmesh.hooks import loss
from trainmesh.hooks.agreement import Agreement, found
from trainmesh.hooks.coding_cost import CodingCosts, times_codecs
from trainmesh.hooks.context import RankContext, say
from trainmesh.hooks.executor import Fabric
from trainmesh.hooks.fusion import Bucket
from trainmesh.hooks.native import NativeExecutor
from trainmesh.hooks.route import Route, check
from trainmesh.hooks.scaling import GradientScaling
from trainmesh.hooks.timing import CudaMarks, HostMarks, StepTimer
from trainmesh.types import Hint

__all__ = ["Dispatcher", "comm_hook"]

ActiveRanks = Callable[[], int | None]


class Dispatcher:
    """State of the hook of one DDP module on one rank.

    ``active_ranks`` says how many ranks a ``Join`` context divides by in this step (None: all).
    """

    def __init__(
        self,
        module: DistributedDataParallel,
        number: int,
        context: RankContext,
        active_ranks: ActiveRanks,
    ) -> None:
        self._number = number
        self._context = context
        self._fabric = Fabric(module.process_group)
        self._native = NativeExecutor(None, self._fabric)
        self._route = Route.native(self._fabric)
        on_cuda = module.device_type == "cuda"
        marks = CudaMarks() if on_cuda else HostMarks()
        self._timer = StepTimer(context.hello.rank, number, marks)
        self._scaling = GradientScaling(module, self._fabric.world_size)
        self._active_ranks = active_ranks
        self._agreement: Agreement | None = None
        self._step = -1
        self._epoch = 0
        self._rejected = 0
        """Epoch of the newest hint that all ranks held and some rank could not carry out."""
        self._unusable: Hint | None = None
        """The newest hint that only this rank refused; a good one of its epoch may follow."""
        self._coding = CodingCosts(context) if times_codecs(context.hello, number) else None

    def forward(self) -> None:
        """The module's forward pass begins."""
        self._timer.forward()

    def note_gradients(self) -> None:
        """The forward pass is about to run; gradients kept from earlier steps are in place."""
        self._scaling.note_gradients()

    def reduce(self, bucket: GradBucket) -> Future[torch.Tensor]:
        """Average ``bucket`` over the ranks."""
        # Each attribute of a bucket is a call into C++: ask once.
        index, buffer, is_last = bucket.index(), bucket.buffer(), bucket.is_last()
        if index == 0:
            self._begin_step(buffer.device)
        if self._coding is not None:
            self._coding.see(self._step, bucket, buffer)
        if buffer.is_sparse:
            mark = self._timer.mark(index, buffer._values().nbytes)
            self._scaling.apply(bucket, buffer)
            mark.start()
            if is_last:
                self._route.flush()
            return self._native.reduce(buffer, mark)
        mark = self._timer.mark(index, buffer.nbytes)
        self._scaling.apply(bucket, buffer)
        mark.start()
        parameters = bucket.parameters() if self._route.needs_parameters else ()
        return self._route.take(Bucket(buffer, parameters, mark), is_last=is_last)

    def close(self) -> None:
        """The process ends: report what was measured."""
        self._timer.close(monotonic_ns())
        for report in self._timer.finished():
            self._context.reporter.step(report)

    def _begin_step(self, device: torch.device) -> None:
        self._step += 1
        self._scaling.begin(self._active_ranks())
        if self._step == 0:
            self._agreement = self._make_agreement(device)
        elif self._agreement is not None:
            self._agree(self._agreement)
        for report in self._timer.begin(self._step, self._epoch, loss.take()):
            self._context.reporter.step(report)

    def _make_agreement(self, device: torch.device) -> Agreement | None:
        """A group for the agreement, if every rank of the whole job could make one."""
        parent = self._fabric.parent
        ranks = list(range(dist.get_world_size()))
        if len(ranks) == 1:
            return None
        if dist.get_process_group_ranks(parent) != ranks:
            if parent.rank() == 0:
                self._context.note("unplanned", "a DDP module is over a part of the ranks only")
            return None
        group = None
        try:
            group = self._fabric.new_group(ranks, backend="gloo")
        except RuntimeError as error:
            self._warn(f"no group for the agreement: {error}")
        is_first = self._number == 0
        return found(parent, group, self._context, device, counts_steps=is_first)

    def _agree(self, agreement: Agreement) -> None:
        try:
            verdict = agreement.result()
            if verdict is not None and verdict.hint is not None:
                self._switch(agreement, verdict.hint)
            elif verdict is not None and verdict.split:
                self._context.note_split(self._step)
            agreement.propose(self._step, self._candidate())
        except RuntimeError as error:
            # A peer is gone or silent; the training's own collectives will say so.
            self._agreement = None
            self._warn(f"agreement broke, the plan in force stays: {error}")

    def _candidate(self) -> Hint | None:
        """The newest hint, if this rank could carry it out."""
        hint = self._context.newest_hint()
        if hint is None or hint.epoch <= max(self._epoch, self._rejected):
            return None
        try:
            check(hint, self._fabric.world_size)
        except PlanError as error:
            if hint is not self._unusable:
                self._unusable = hint
                self._note_rejected(hint, str(error))
            return None
        return hint

    def _switch(self, agreement: Agreement, hint: Hint) -> None:
        """Every rank holds ``hint``: carry it out, if every rank can."""
        built: Route | None = None
        try:
            built = self._route.following(hint)
        except Exception as error:  # a plug-in may fail in any way; the vote must still be cast
            self._reject(hint, f"can't be carried out: {error}")
        if not agreement.vote(built is not None):
            if built is not None:
                built.close(self._route)
                self._reject(hint, "another rank can't carry it out")
            return
        assert built is not None  # noqa: S101 - the vote was unanimous
        old, self._route = self._route, built
        self._epoch = hint.epoch
        self._context.note("switched", hint.plan.algorithm, step=self._step, epoch=hint.epoch)
        old.close(built)
        if hint.probe_bytes:
            for pair in agreement.probe(hint.epoch, hint.probe_bytes):
                self._context.reporter.pair(pair)

    def _reject(self, hint: Hint, why: str) -> None:
        self._rejected = hint.epoch
        self._note_rejected(hint, why)

    def _note_rejected(self, hint: Hint, why: str) -> None:
        self._context.note(
            "rejected",
            f"plan {hint.plan.algorithm} of epoch {hint.epoch}: {why}",
            step=self._step,
            epoch=hint.epoch,
        )

    def _warn(self, text: str) -> None:
        say(text)
        self._context.note("warning", text, step=self._step)


def comm_hook(state: Dispatcher, bucket: GradBucket) -> Future[torch.Tensor]:
    """What is registered with DDP, which insists on the name ``bucket`` and on these
    annotations as objects (so no ``from __future__ import annotations`` in this file)."""
    return state.reduce(bucket)
