"""The one hook that DDP knows: it times every bucket and runs the plan that all ranks agreed on,
or the script's own hook.

A reducer takes a hook once, so what changes is what is inside. Nothing that is trainmesh's own
reaches the training loop: measuring (``observer``) and switching (``switching``) may fail, and
the buckets go on their way. Errors of the communication itself do reach it, as they do without
us.
"""

import weakref

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.hooks import modules, world
from trainmesh.hooks.context import RankContext, say_once
from trainmesh.hooks.executor import Fabric
from trainmesh.hooks.fusion import Bucket
from trainmesh.hooks.groups import job_size, spans_the_job
from trainmesh.hooks.native import NativeExecutor
from trainmesh.hooks.observer import Observer
from trainmesh.hooks.route import Route, check
from trainmesh.hooks.scaling import GradientScaling
from trainmesh.hooks.switching import Switching
from trainmesh.hooks.user import UserHook
from trainmesh.types import Hint

__all__ = ["Dispatcher", "comm_hook"]

GAP = 1
"""A step begins when the first bucket of the one before is reduced: no rank is behind by more."""


class Dispatcher:
    """State of the hook of one DDP module on one rank. It lives as long as DDP's reducer, which
    holds it; it does not hold the module.
    """

    def __init__(self, module: DistributedDataParallel) -> None:
        self._module = weakref.ref(module)
        self._device_type = module.device_type
        self._active: dist.Work | None = None
        """What tells how many ranks a ``Join`` context divides by; None: all."""
        self._observer = Observer(self._device_type, self._join)
        self._user: UserHook | None = None
        self._first_sum: Future[torch.Tensor] | None = None
        """Of the step before, while the ranks meet."""
        self._step = -1
        self._use_group(module)

    def _use_group(self, module: DistributedDataParallel) -> None:
        """Reduce over the module's process group, as DDP does until a first plan."""
        self._fabric = Fabric(module.process_group)
        self._native = NativeExecutor(None, self._fabric)
        self._route = Route.native(self._fabric)
        self._scaling = GradientScaling(module, self._fabric.world_size)
        self._switching: Switching[Route] | None = None

    def adopt(self, user: UserHook) -> None:
        """The script registers a hook: from the next bucket on it does the communication."""
        say_once(
            f"hook {user.name}",
            f"the script's own communication hook {user.name} is kept and timed; "
            "no plan will replace it",
        )
        self._user = user

    @property
    def epoch(self) -> int:
        """Of the plan in force."""
        return self._switching.epoch if self._switching is not None else 0

    @property
    def group(self) -> dist.ProcessGroup:
        """That the module reduces over."""
        return self._fabric.parent

    @property
    def is_users(self) -> bool:
        """Whether the script has registered a hook of its own."""
        return self._user is not None

    def forward(self) -> None:
        """The module's forward pass begins."""
        self._observer.forward()

    def backward(self, _outputs: object) -> None:
        """The backward pass is about to run; gradients kept from earlier steps are in place."""
        self._scaling.note_gradients()

    def divide_by_active(self, work: dist.Work, is_static: bool) -> None:
        """A ``Join`` context counts the ranks that still have input. DDP's reducer divides by
        their number (unless ``is_static``) from now on, whatever becomes of the context."""
        self._active = None if is_static else work

    def reduce(self, bucket: GradBucket) -> Future[torch.Tensor]:
        """Average ``bucket`` over the ranks."""
        # Each attribute of a bucket is a call into C++: ask once.
        index, buffer, is_last = bucket.index(), bucket.buffer(), bucket.is_last()
        if index == 0:
            self._begin_step(buffer.device)
        if self._user is not None:
            mark = self._observer.mark(index, _nbytes(buffer))
            return self._user.reduce(bucket, mark)
        self._observer.see(self._step, bucket, buffer)
        if buffer.is_sparse:
            mark = self._observer.mark(index, _nbytes(buffer))
            self._scaling.apply(bucket, buffer)
            mark.start()
            if is_last:
                self._route.flush()
            return self._noted(index, self._native.reduce(buffer, mark))
        mark = self._observer.mark(index, buffer.nbytes)
        self._scaling.apply(bucket, buffer)
        mark.start()
        parameters = bucket.parameters() if self._route.needs_parameters else ()
        sum_ = self._route.take(Bucket(buffer, parameters, mark), is_last=is_last)
        return self._noted(index, sum_)

    def _noted(self, index: int, sum_: Future[torch.Tensor]) -> Future[torch.Tensor]:
        """The step's first sum: once it is there, all ranks have entered the step."""
        if index == 0 and self._switching is not None and self._switching.is_meeting:
            self._first_sum = sum_
        return sum_

    def finish(self) -> None:
        """The process or the module ends: report what was measured."""
        self._observer.finish()

    def close(self) -> None:
        """The module has ended: its groups and threads end with it."""
        self.finish()
        self._end_plan()

    def check(self, hint: Hint) -> None:
        check(hint, self._fabric.world_size)

    def build(self, hint: Hint) -> Route:
        return self._route.following(hint)

    def put_in_force(self, built: Route) -> None:
        old, self._route = self._route, built
        old.close(built)

    def discard(self, built: Route) -> None:
        built.close(self._route)

    def _begin_step(self, device: torch.device) -> None:
        self._step += 1
        module = self._module()
        if module is not None and module.process_group is not self._fabric.parent:
            self._route.close()
            self._use_group(module)
        self._scaling.begin(self._num_active())
        if self._step == 0:
            self._observer.open()
        if self._switching is None:
            self._switching = self._make_switching()
        if self._user is not None and self._user.is_new:
            self._user.is_new = False
            self._observer.note("hook_kept", self._user.name, step=self._step)
            self._end_plan()
        before, self._first_sum = self._first_sum, None
        self._switching.begin_step(self._step, device, before)
        self._observer.begin(self._step, self._switching.epoch)

    def _num_active(self) -> int | None:
        if self._active is None:
            return None
        self._active.wait()
        return int(self._active.result()[0].item())

    def _make_switching(self) -> Switching[Route]:
        here = None
        if self._user is None and spans_the_job(self._fabric.parent):
            try:
                here = world.current()
            except Exception as error:  # a store of another kind; the marks will be missing
                self._observer.warn(f"no plan is followed: {error}", step=self._step)
        elif self._user is None and self.group.rank() == 0 and self.group.size() < job_size():
            self._observer.note("unplanned", "a DDP module is over a part of the ranks only")
        return Switching(here, self._observer, self, GAP)

    def _end_plan(self) -> None:
        """Back to what DDP would do, for good; nothing is in flight."""
        if self._switching is not None:
            self._switching.stop()
            self._switching.epoch = 0
        old, self._route = self._route, Route.native(self._fabric)
        old.close()

    def _join(self) -> tuple[RankContext, int]:
        context = modules.shared_context(self._device_type, self._fabric.backend)
        return context, modules.join(self._observer)


def _nbytes(buffer: torch.Tensor) -> int:
    return buffer._values().nbytes if buffer.is_sparse else buffer.nbytes


def comm_hook(state: Dispatcher, bucket: GradBucket) -> Future[torch.Tensor]:
    """What is registered with DDP's reducer."""
    return state.reduce(bucket)
