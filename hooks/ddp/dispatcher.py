"""Times a DDP module's buckets, and has them summed by the plan that all ranks agreed on.

No error of trainmesh's own reaches the training loop: if measuring (``observer``) or switching
(``switching``) fails, the buckets are still summed. Errors of the communication itself do reach the
loop, as they do without trainmesh.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket, Reducer
from torch.futures import Future
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.hooks import modules, world
from trainmesh.hooks.context import RankContext, say_once
from trainmesh.hooks.ddp.buckets import BucketOrder
from trainmesh.hooks.ddp.user import UserHook
from trainmesh.hooks.executor import GroupFactory
from trainmesh.hooks.groups import job_size, spans_the_job
from trainmesh.hooks.observer import ModuleObserver
from trainmesh.hooks.route.coding_cost import ENV_COMPRESSION
from trainmesh.hooks.route.compressed import NO_CODEC
from trainmesh.hooks.route.fusion import Bucket
from trainmesh.hooks.route.route import BucketRoute, check
from trainmesh.hooks.switching import Switching
from trainmesh.types import Hint

__all__ = ["Dispatcher"]

GAP = 1
"""A step begins when the first bucket of the one before is reduced: no rank is behind by more."""


class Dispatcher:
    """State of one DDP module on one rank. It lives as long as DDP's reducer; it does not hold the
    module. ``numel``: elements of all gradients that the reducer reduces."""

    def __init__(self, module: DistributedDataParallel, numel: int) -> None:
        self._device_type = module.device_type
        self._observer = ModuleObserver(self._device_type, self._join)
        self._order = BucketOrder(numel)
        self._wants_parameters = os.environ.get(ENV_COMPRESSION, NO_CODEC) != NO_CODEC
        self._scripts = ""
        """Name of the script's own hook; empty as long as it has none."""
        self._is_new = False
        self._hook: UserHook | None = None
        self._first_sum: Future[Any] | None = None
        """Of the step before, while the ranks meet."""
        self._step = -1
        self._left = 0
        """Elements of this step's buckets that are still to come, if nothing is done in it but what
        DDP would do, as in most of many short steps. Everything for these is on this way."""
        self._start(module.process_group)

    def _start(self, group: dist.ProcessGroup) -> None:
        """Reduce over ``group``, as DDP does until a first plan."""
        self._group_factory = GroupFactory(group)
        self._native = group.allreduce
        self._left = 0
        self._route = BucketRoute.native(self._group_factory)
        self._switching: Switching[BucketRoute] | None = None

    def use_group(self, group: dist.ProcessGroup) -> None:
        """The script gives the module another process group; nothing is in flight."""
        self._route.close()
        self._start(group)

    def adopt(self, name: str, hook: UserHook | None) -> None:
        """The script registers a hook: from the next bucket on it does the communication. A
        built-in one (None) runs in C++, and its all-reduces come here."""
        say_once(
            f"hook {name}",
            f"the script's own communication hook {name} is kept and timed; "
            "no plan will replace it",
        )
        self._scripts, self._hook = name, hook
        self._is_new = True

    @property
    def epoch(self) -> int:
        """Of the plan in force."""
        return self._switching.epoch if self._switching is not None else 0

    def forward(self) -> None:
        """The module's forward pass begins."""
        self._observer.forward()

    def backward(self) -> None:
        """The reducer expects the first of its buckets next, whatever became of a step before."""
        self._left = 0
        self._order.restart()
        self._route.restart()

    def rebuilt(self, reducer: Reducer, has_rebuilt: bool) -> None:
        """From here on, the buckets are those of the coming backward pass."""
        if self._wants_parameters:
            self._order.read_parameters(reducer, rebuilt=has_rebuilt)

    def all_reduce(self, tensors: list[torch.Tensor], opts: dist.AllreduceOptions) -> dist.Work:
        """Sum a bucket over the ranks, for the reducer, which has divided it."""
        if self._left:
            self._left = max(0, self._left - tensors[0].numel())
            return self._native(tensors, opts)
        buffer = tensors[0]
        if self._hook is not None or not _has_gradients(buffer):
            return self._native(tensors, opts)
        index, is_last = self._order.next(buffer)
        if index == 0 and self._begin_step(buffer.device):
            self._left = self._order.leave()
            return self._native(tensors, opts)
        if self._observer.times_codecs:
            self._observer.see(self._step, self._order.parameters(index, buffer), buffer)
        mark = self._observer.mark(index, _nbytes(buffer))
        if self._route.is_native or buffer.is_sparse:
            if is_last:
                self._route.flush()
            work = self._native(tensors, opts)
            self._observer.await_end(work, mark)
            self._note_first(index, work)
            return work
        needs = self._route.needs_parameters
        parameters = self._order.parameters(index, buffer) if needs else ()
        work = _work_of(self._route.take(Bucket(buffer, parameters, mark), is_last=is_last))
        self._note_first(index, work)
        return work

    def _note_first(self, index: int, work: dist.Work) -> None:
        """The step's first sum: once it is there, all ranks have entered the step."""
        if index == 0 and self._switching is not None and self._switching.is_meeting:
            self._first_sum = work.get_future()

    def run_hook(self, bucket: GradBucket) -> Future[torch.Tensor]:
        """Let the script's hook reduce ``bucket``."""
        assert self._hook is not None  # noqa: S101 - it is registered when there is one
        index = bucket.index()
        if index == 0:
            self._begin_step(bucket.buffer().device)
        return self._hook.reduce(bucket, self._observer.mark(index, _nbytes(bucket.buffer())))

    def finish(self) -> None:
        """The process or the module ends: report what was measured."""
        self._observer.finish()

    def close(self) -> None:
        """The module has ended: its groups and threads end with it."""
        self.finish()
        self._end_plan()

    def check(self, hint: Hint) -> bool:
        check(hint, self._group_factory.world_size)
        if hint.codec == NO_CODEC:
            return True
        self._wants_parameters = True
        return self._order.knows_parameters

    def build(self, hint: Hint) -> BucketRoute:
        return self._route.following(hint)

    def put_in_force(self, built: BucketRoute) -> None:
        old, self._route = self._route, built
        old.close(built)

    def discard(self, built: BucketRoute) -> None:
        built.close(self._route)

    def _begin_step(self, device: torch.device) -> bool:
        """Whether nothing is done in this step but what DDP would do."""
        self._step += 1
        if self._step == 0:
            self._observer.open()
        if self._switching is None:
            self._switching = self._make_switching()
        if self._is_new:
            self._is_new = False
            if self._observer.is_first:  # plans are made for this one's steps
                self._observer.note("hook_kept", self._scripts, step=self._step)
            self._end_plan()
        before, self._first_sum = self._first_sum, None
        self._switching.begin_step(self._step, device, before)
        self._observer.begin(self._step, self._switching.epoch)
        looks = self._observer.times_buckets or self._observer.times_codecs
        looks = looks or self._wants_parameters or self._switching.is_meeting
        return self._route.is_native and not looks

    def _make_switching(self) -> Switching[BucketRoute]:
        here = None
        if not self._scripts and spans_the_job(self._group_factory.parent):
            try:
                here = world.current()
            except Exception as error:  # a store of another kind; the marks will be missing
                self._observer.warn(f"no plan is followed: {error}", step=self._step)
        elif (
            not self._scripts
            and self._group_factory.rank == 0
            and self._group_factory.world_size < job_size()
        ):
            self._observer.note("unplanned", "a DDP module is over a part of the ranks only")
        return Switching(here, self._observer, self, GAP)

    def _end_plan(self) -> None:
        """Back to what DDP would do, for good; nothing is in flight."""
        if self._switching is not None:
            self._switching.stop()
            self._switching.epoch = 0
        old, self._route = self._route, BucketRoute.native(self._group_factory)
        old.close()

    def _join(self) -> tuple[RankContext, int]:
        context = modules.shared_context(self._device_type, self._group_factory.backend)
        return context, modules.join(self._observer)


_work_of: Callable[[Future[torch.Tensor]], dist.Work] = vars(torch._C._distributed_c10d)[
    "_create_work_from_future"
]


def _nbytes(buffer: torch.Tensor) -> int:
    return buffer._values().nbytes if buffer.is_sparse else buffer.nbytes


def _has_gradients(tensor: torch.Tensor) -> bool:
    """It isn't the map of used parameters, which is of integers, nor an empty bucket, for which a
    backend may not wait for its peers."""
    return (tensor.dtype.is_floating_point or tensor.dtype.is_complex) and tensor.numel() > 0
