"""The gradient reductions of one FSDP2 root module on one rank, timed like DDP's buckets.

A bucket is one parameter group's reduction: the all-reduce over the replicate dimension if
there is one (HSDP), else the reduce-scatter of its unsharded gradients. A step is one backward
pass with reductions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from trainmesh.hooks.fsdp.replicas import ReplicaPlans
from trainmesh.hooks.observer import ModuleObserver
from trainmesh.hooks.timing import Mark

__all__ = ["Reductions"]

Result = TypeVar("Result")


class Reductions:
    """Those of one root over ``group``. ``plans`` is None where no plan can be carried out."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        observer: ModuleObserver,
        plans: ReplicaPlans | None,
    ) -> None:
        self.group = group
        self._device = device
        self._observer = observer
        self._plans = plans
        self._step = -1
        self._index = -1
        """Of the newest bucket of the backward pass that is under way; -1 between two."""

    def forward(self) -> None:
        """The root's forward pass begins."""
        self._observer.forward()

    def backward_ended(self) -> None:
        """All reductions of this backward pass have been started."""
        self._index = -1

    def timed(self, nbytes: int, reduce: Callable[[], Result]) -> Result:
        """Call FSDP2's own ``reduce``, which orders the current stream after the communication."""
        mark = self._mark(nbytes)
        result = reduce()
        mark.end()
        return result

    def all_reduce(
        self, buffer: torch.Tensor, op: object, native: Callable[[], dist.Work | None]
    ) -> dist.Work | None:
        """Sum or average ``buffer`` over the replicas as the agreed plan says."""
        mark = self._mark(buffer.nbytes)
        executor = self._plans.executor if self._plans is not None else None
        if executor is None or not _plannable(buffer, op):
            result = native()
            mark.end()
            return result
        executor.reduce(buffer, mark).wait()
        if op == dist.ReduceOp.AVG:
            buffer.div_(self.group.size())
        return None

    def finish(self) -> None:
        """The process or the root ends: report what was measured."""
        self._observer.finish()

    def close(self) -> None:
        """The root has ended."""
        self.finish()
        if self._plans is not None:
            self._plans.close()

    def _mark(self, nbytes: int) -> Mark:
        if self._index < 0:
            self._begin_step()
        self._index += 1
        return self._observer.mark(self._index, nbytes)

    def _begin_step(self) -> None:
        self._step += 1
        epoch = 0
        if self._plans is not None:
            self._plans.begin_step(self._step, self._device)
            epoch = self._plans.epoch
        self._observer.begin(self._step, epoch)


def _plannable(buffer: torch.Tensor, op: object) -> bool:
    """Whether executors can do it; the same on every rank, as FSDP2 calls all of them alike."""
    flat = buffer.dim() == 1 and buffer.is_contiguous() and buffer.is_floating_point()
    return flat and (op == dist.ReduceOp.SUM or op == dist.ReduceOp.AVG)
