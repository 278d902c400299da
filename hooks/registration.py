"""How an unmodified script's DDP modules get the dispatcher.

It goes into the reducer in the moment DDP has made one, in the constructor and where a module is
copied or loaded: on every rank, whatever the ranks do with the module afterwards, and without any
communication. The module itself is left as it is: nothing of ours is in its ``__dict__`` or in
DDP's list of hooks, so a copy or a pickle is that of a plain DDP module.

A hook that the script registers, then or later, would go to the reducer; it goes to the
dispatcher instead, which from then on calls nothing else.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BuiltinCommHookType, Reducer
from torch.nn.parallel.distributed import DistributedDataParallel

from trainmesh.hooks import loss, modules
from trainmesh.hooks.context import say_once
from trainmesh.hooks.dispatcher import Dispatcher, comm_hook
from trainmesh.hooks.user import BUILT_IN, UserHook

__all__ = ["dispatcher_of", "wrap_ddp"]

_is_wrapped = False
_dispatchers: weakref.WeakKeyDictionary[Reducer, Dispatcher] = weakref.WeakKeyDictionary()

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
    _watch_reducer("prepare_for_backward", Dispatcher.backward)
    vars(dist)["_register_comm_hook"] = _register_comm_hook
    vars(dist)["_register_builtin_comm_hook"] = _register_builtin_comm_hook
    _watch_reducer("_set_forward_pass_work_handle", Dispatcher.divide_by_active)


def dispatcher_of(module: DistributedDataParallel) -> Dispatcher | None:
    """What is in the module's reducer; None if it is left alone."""
    reducer = module.__dict__.get("reducer")
    return None if reducer is None else _dispatchers.get(reducer)


def _wrap_init_helper() -> None:
    original: Callable[..., None] = DistributedDataParallel._ddp_init_helper

    @functools.wraps(original)
    def wrapped(module: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        original(module, *args, **kwargs)
        _hook(module)

    DistributedDataParallel._ddp_init_helper = wrapped  # type: ignore[method-assign,assignment]


def _hook(module: DistributedDataParallel) -> None:
    """Register with the module's new reducer, if it can have a hook."""
    reason = _hands_off(module)
    if reason is not None:
        _leave_alone(reason)
        return
    try:
        dispatcher = Dispatcher(module)
    except Exception as error:  # torch's private parts may differ; the script must run
        _leave_alone(repr(error))
        return
    _register(module.reducer, dispatcher, comm_hook)
    _dispatchers[module.reducer] = dispatcher
    weakref.finalize(module.reducer, dispatcher.close).atexit = False


def _leave_alone(reason: str) -> None:
    modules.mark_seen()
    say_once("left alone", f"a DDP module is left alone: {reason}")


def _hands_off(module: DistributedDataParallel) -> str | None:
    """Why a module can't have a hook; None if it can. The same on every rank: DDP asks that its
    arguments are."""
    if getattr(module, "_use_python_reducer", False):
        return "torch.compile's Python reducer takes no hook"
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


def _watch_reducer(name: str, tell: Callable[..., None]) -> None:
    """Tell the dispatcher when the reducer's method ``name`` is called, by DDP or a subclass."""
    original = getattr(Reducer, name)

    @functools.wraps(original)
    def watched(reducer: Reducer, *args: Any) -> Any:
        dispatcher = _dispatchers.get(reducer)
        if dispatcher is not None:
            try:
                tell(dispatcher, *args)
            except Exception as error:
                say_once(name, f"{name} can't be watched: {error!r}")
        return original(reducer, *args)

    setattr(Reducer, name, watched)


def _register_comm_hook(reducer: Reducer, state: object, comm_hook: Any) -> None:
    """For ``torch.distributed._register_comm_hook``."""
    dispatcher = _dispatchers.get(reducer)
    if dispatcher is None or dispatcher.is_users:
        _register(reducer, state, comm_hook)  # the second time it is torch that refuses
        return
    dispatcher.adopt(UserHook(state, comm_hook))


def _register_builtin_comm_hook(reducer: Reducer, comm_hook_type: BuiltinCommHookType) -> None:
    """For ``torch.distributed._register_builtin_comm_hook``."""
    dispatcher = _dispatchers.get(reducer)
    hook = BUILT_IN.get(comm_hook_type)
    if dispatcher is None or dispatcher.is_users or hook is None:
        _register_builtin(reducer, comm_hook_type)
        return
    dispatcher.adopt(UserHook(dispatcher.group, hook, name=str(comm_hook_type)))
