"""A script's own communication hook, with timing around it and nothing else changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import monotonic_ns

import torch
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.hooks import loss
from trainmesh.hooks.context import RankContext
from trainmesh.hooks.timing import CudaMarks, HostMarks, StepTimer

__all__ = ["TimedUserHook"]

UserHook = Callable[..., Future[torch.Tensor]]


class TimedUserHook:
    """Times the buckets that ``hook`` handles for one DDP module."""

    def __init__(
        self,
        module: DistributedDataParallel,
        number: int,
        context: RankContext,
        state: object,
        hook: UserHook,
    ) -> None:
        self._hook = hook
        self._context = context
        marks = CudaMarks() if module.device_type == "cuda" else HostMarks()
        self._timer = StepTimer(context.hello.rank, number, marks)
        self._step = -1

    def as_hook(self) -> UserHook:
        """The hook to register with DDP, with the signature and name of the script's."""

        @functools.wraps(self._hook)
        def timed(state: object, bucket: GradBucket) -> Future[torch.Tensor]:
            if bucket.index() == 0:
                self._begin_step()
            mark = self._timer.mark(bucket.index(), bucket.buffer().nbytes)
            future = self._hook(state, bucket)
            future.add_done_callback(lambda _: mark.end())
            return future

        return timed

    def forward(self) -> None:
        self._timer.forward()

    def close(self) -> None:
        self._timer.close(monotonic_ns())
        for report in self._timer.finished():
            self._context.reporter.step(report)

    def _begin_step(self) -> None:
        self._step += 1
        for report in self._timer.begin(self._step, 0, loss.take()):
            self._context.reporter.step(report)
