"""How an unmodified script's DDP modules get the dispatcher.

``DistributedDataParallel`` is wrapped in four places: its constructor's result is left alone;
at the first training forward (or when a ``Join`` context is made) our hook is registered, unless
the script has registered its own, which is then kept and timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.algorithms.join import Join
from torch.futures import Future
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.hooks import loss, modules
from trainmesh.hooks.context import RankContext, say
from trainmesh.hooks.dispatcher import Dispatcher, comm_hook
from trainmesh.hooks.modules import ATTRIBUTE
from trainmesh.hooks.user import TimedUserHook

__all__ = ["wrap_ddp"]

Hooked = Dispatcher | TimedUserHook
Wrapper = Callable[[DistributedDataParallel], None]

_original_register = DistributedDataParallel.register_comm_hook


def wrap_ddp() -> None:
    """Wrap DDP's methods and watch for losses; once a process."""
    if getattr(DistributedDataParallel, ATTRIBUTE, False):
        return
    setattr(DistributedDataParallel, ATTRIBUTE, True)
    loss.watch()
    _wrap("_pre_forward", before=_before_forward, after=_after_pre_forward)
    _wrap("join_hook", before=_before_join)
    _wrap("_register_builtin_comm_hook", before=_keep_builtin)
    DistributedDataParallel.register_comm_hook = (  # type: ignore[method-assign]
        _register_comm_hook  # type: ignore[assignment]
    )
    _watch_join()


def _nothing(module: DistributedDataParallel) -> None:
    pass


def _wrap(name: str, *, before: Wrapper, after: Wrapper = _nothing) -> None:
    original = getattr(DistributedDataParallel, name)

    @functools.wraps(original)
    def wrapped(module: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
        # torch.compile traces DDP's forward pass; what we do there would break its graph.
        if torch.compiler.is_compiling():
            return original(module, *args, **kwargs)
        before(module)
        result = original(module, *args, **kwargs)
        after(module)
        return result

    setattr(DistributedDataParallel, name, wrapped)


def _before_forward(module: DistributedDataParallel) -> None:
    if torch.is_grad_enabled() and module.training:
        hooked = _ensure_hooked(module)
        if hooked is not None:  # a step begins with the first of its micro-steps (no_sync)
            hooked.forward()


def _after_pre_forward(module: DistributedDataParallel) -> None:
    """DDP has rebuilt its buckets if it wanted to: gradients are where they will be."""
    hooked = module.__dict__.get(ATTRIBUTE)
    if isinstance(hooked, Dispatcher):
        hooked.note_gradients()


def _before_join(module: DistributedDataParallel) -> None:
    """A rank without any input takes part in the others' buckets without a forward of its own."""
    _ensure_hooked(module)


def _ensure_hooked(module: DistributedDataParallel) -> Hooked | None:
    """The module's dispatcher, registered now if nothing is yet; None if it is left alone."""
    state: dict[str, Any] = module.__dict__
    if ATTRIBUTE not in state:
        reason = _hands_off(module)
        if reason is not None:
            modules.remember(module, None)
            say(f"a DDP module is left alone: {reason}")
        else:
            dispatcher = Dispatcher(
                module,
                modules.number(),
                _shared_context(module),
                functools.partial(_active, module),
            )
            modules.remember(module, dispatcher)
            _original_register(module, dispatcher, comm_hook)
    hooked: Hooked | None = state[ATTRIBUTE]
    return hooked


def _hands_off(module: DistributedDataParallel) -> str | None:
    """Why a module can't have a hook; None if it can."""
    if getattr(module, "_use_python_reducer", False):
        return "torch.compile's Python reducer takes no hook"
    if getattr(module, "_delay_all_reduce_all_params", False):
        return "all its parameters are in delay_all_reduce_named_params"
    if module.device_type not in ("cpu", "cuda"):
        return f"device {module.device_type} is not supported"
    return None


def _shared_context(module: DistributedDataParallel) -> RankContext:
    return modules.shared_context(module.device_type, module.process_group)


def _register_comm_hook(
    module: DistributedDataParallel, state: object, hook: Callable[..., Future[torch.Tensor]]
) -> None:
    """DDP.register_comm_hook for the script: its hook is kept, with timing around it."""
    module._check_comm_hook(hook)  # type: ignore[no-untyped-call]
    number = modules.number()
    context = _shared_context(module)
    say(
        f"the script's own communication hook {hook.__qualname__} is kept and timed; "
        "no plan will replace it"
    )
    context.note("hook_kept", hook.__qualname__)
    timed = TimedUserHook(module, number, context, state, hook)
    _original_register(module, state, timed.as_hook())
    modules.remember(module, timed)


def _keep_builtin(module: DistributedDataParallel) -> None:
    modules.remember(module, None)
    say("the script's built-in communication hook is kept; it runs in C++ and can't be timed")


def _watch_join() -> None:
    """Remember how many ranks still have input; DDP's reducer may divide by that."""
    original = Join.notify_join_context

    @functools.wraps(original)
    def notify(joinable: Any) -> Any:
        work = original(joinable)
        if not torch.compiler.is_compiling():
            joinable.__dict__["_trainmesh_join"] = work
        return work

    Join.notify_join_context = staticmethod(notify)  # type: ignore[method-assign]


def _active(module: DistributedDataParallel) -> int | None:
    if not module._join_config.enable or getattr(module, "_divide_by_initial_world_size", True):
        return None
    work = module.__dict__.get("_trainmesh_join")
    if work is None:
        return None
    work.wait()
    return int(work.result()[0].item())
