"""How an unmodified script's DDP modules get the dispatcher.

The reducer that DDP has made, in the constructor and where a module is copied or loaded, is given
our group in the place of the module's: on every rank, whatever the ranks do with the module
afterwards, and without any communication. The module itself is left as it is: nothing of ours is
in its ``__dict__`` or in DDP's list of hooks, so a copy or a pickle is that of a plain DDP module.

A hook that the script registers, then or later, goes to the reducer as it does without us, with
timing around it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BuiltinCommHookType, Reducer
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.hooks import loss, modules
from trainmesh.hooks.context import say_once
from trainmesh.hooks.ddp.dispatcher import Dispatcher
from trainmesh.hooks.ddp.reducer_group import ReducerGroup
from trainmesh.hooks.ddp.user import UserHook

__all__ = ["dispatcher_of", "wrap_ddp"]

_is_wrapped = False
_dispatchers: weakref.WeakKeyDictionary[Reducer, Dispatcher] = weakref.WeakKeyDictionary()
_groups: weakref.WeakKeyDictionary[Reducer, list[ReducerGroup]] = weakref.WeakKeyDictionary()
"""All that a reducer has had: it, and DDP's built-in hooks, hold their C++ halves only."""

_original: dict[str, Callable[..., Any]] = dict(vars(Reducer))
_register: Callable[..., None] = vars(dist)["_register_comm_hook"]
_register_builtin: Callable[..., None] = vars(dist)["_register_builtin_comm_hook"]


def wrap_ddp() -> None:
    """Wrap what makes and drives reducers, and watch for losses; once a process."""
    global _is_wrapped
    if _is_wrapped:
        return
    _is_wrapped = True
    loss.watch()
    _wrap_init_helper()
    _watch_forward()
    for method in (prepare_for_backward, _rebuild_buckets, _update_process_group):
        setattr(Reducer, method.__name__, method)
    vars(dist)["_register_comm_hook"] = _register_comm_hook
    vars(dist)["_register_builtin_comm_hook"] = _register_builtin_comm_hook


def dispatcher_of(module: DistributedDataParallel) -> Dispatcher | None:
    """What is in the module's reducer; None if it is left alone."""
    reducer = module.__dict__.get("reducer")
    return None if reducer is None else _dispatchers.get(reducer)


def _wrap_init_helper() -> None:
    original: Callable[..., None] = DistributedDataParallel._ddp_init_helper

    @functools.wraps(original)
    def wrapped(
        module: DistributedDataParallel, parameters: Sequence[torch.Tensor], *args: Any, **kw: Any
    ) -> None:
        original(module, parameters, *args, **kw)
        _attach(module, parameters)

    DistributedDataParallel._ddp_init_helper = wrapped  # type: ignore[method-assign,assignment]


def _attach(module: DistributedDataParallel, parameters: Sequence[torch.Tensor]) -> None:
    """Let the module's new reducer reduce through us, unless the module is left alone."""
    reason = _hands_off(module)
    if reason is not None:
        _leave_alone(reason)
        return
    try:
        dispatcher = Dispatcher(module, sum(parameter.numel() for parameter in parameters))
        _reduce_through(module.reducer, dispatcher, module.process_group)
    except Exception as error:  # torch's private parts may differ; the script must run
        _leave_alone(repr(error))
        return
    _dispatchers[module.reducer] = dispatcher
    weakref.finalize(module.reducer, dispatcher.close).atexit = False
    modules.close_at_end(dispatcher)


def _leave_alone(reason: str) -> None:
    modules.mark_seen()
    say_once("left alone", f"a DDP module is left alone: {reason}")


def _reduce_through(reducer: Reducer, dispatcher: Dispatcher, group: dist.ProcessGroup) -> None:
    ours = ReducerGroup(group, dispatcher.all_reduce)
    _original["_update_process_group"](reducer, ours)
    _groups.setdefault(reducer, []).append(ours)


def _hands_off(module: DistributedDataParallel) -> str | None:
    """Why a module is left alone; None if it isn't. The same on every rank: DDP asks that its
    arguments are."""
    if getattr(module, "_use_python_reducer", False):
        return "torch.compile's Python reducer reduces without buckets"
    if getattr(module, "skip_all_reduce_unused_params", False):
        return "with skip_all_reduce_unused_params nobody knows which bucket is a step's last"
    if module.device_type not in ("cpu", "cuda"):
        return f"device {module.device_type} is not supported"
    return None


def _watch_forward() -> None:
    """A step begins with the first of its forward passes, be it within ``no_sync``."""
    original: Callable[..., Any] = DistributedDataParallel._pre_forward

    @functools.wraps(original)
    def watched(module: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            dispatcher = dispatcher_of(module)
            if dispatcher is not None:
                dispatcher.forward()
        return original(module, *args, **kwargs)

    DistributedDataParallel._pre_forward = watched  # type: ignore[method-assign,assignment]


def prepare_for_backward(reducer: Reducer, outputs: Any) -> None:
    """Here the reducer begins to count its buckets anew, whoever drives it."""
    dispatcher = _dispatchers.get(reducer)
    if dispatcher is not None:
        dispatcher.backward()
    _original["prepare_for_backward"](reducer, outputs)


def _rebuild_buckets(reducer: Reducer) -> bool:
    has_rebuilt: bool = _original["_rebuild_buckets"](reducer)
    dispatcher = _dispatchers.get(reducer)
    if dispatcher is not None:
        try:
            dispatcher.rebuilt(reducer, has_rebuilt)
        except Exception as error:  # no codec comes into force then, on any rank
            say_once("buckets", f"buckets can't be looked at: {error!r}")
    return has_rebuilt


def _update_process_group(reducer: Reducer, group: dist.ProcessGroup) -> None:
    dispatcher = _dispatchers.get(reducer)
    if dispatcher is None:
        _original["_update_process_group"](reducer, group)
        return
    dispatcher.use_group(group)
    _reduce_through(reducer, dispatcher, group)


def _register_comm_hook(reducer: Reducer, state: object, comm_hook: Any) -> None:
    """For ``torch.distributed._register_comm_hook``."""
    dispatcher = _dispatchers.get(reducer)
    if dispatcher is None:
        _register(reducer, state, comm_hook)
        return
    hook = UserHook(state, comm_hook)
    _register(reducer, dispatcher, Dispatcher.run_hook)  # which refuses a second one
    dispatcher.adopt(hook.name, hook)


def _register_builtin_comm_hook(reducer: Reducer, comm_hook_type: BuiltinCommHookType) -> None:
    """For ``torch.distributed._register_builtin_comm_hook``."""
    _register_builtin(reducer, comm_hook_type)
    dispatcher = _dispatchers.get(reducer)
    if dispatcher is not None:
        dispatcher.adopt(str(comm_hook_type), None)
