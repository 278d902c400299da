"""Where FSDP2 is entered: four private places of torch, checked before any is touched.

``FSDPParamGroup.post_backward`` says whose reductions follow. What it then calls on the module
``torch.distributed`` goes through a stand-in that knows two names, ``reduce_scatter_single`` and
``all_reduce``, and passes on everything else. At any doubt the original is called as it was.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
from torch.distributed.fsdp._fully_shard._fsdp_common import DDPMeshInfo
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

from trainmesh.hooks import loss, modules
from trainmesh.hooks.context import say
from trainmesh.hooks.fsdp.reductions import Reductions
from trainmesh.hooks.fsdp.replicas import ReplicaGroupFactory, ReplicaPlans, replica_groups
from trainmesh.hooks.groups import backend_of
from trainmesh.hooks.observer import ModuleObserver
from trainmesh.types import Collective

__all__ = ["wrap_fsdp"]

Call = Callable[..., Any]


class _Current(threading.local):
    """The parameter group whose gradients this thread is reducing."""

    group: Any = None


_current = _Current()
_reductions: weakref.WeakKeyDictionary[Any, Reductions | None] = weakref.WeakKeyDictionary()
"""By what the parts of one root share; None: its root is left alone."""


def wrap_fsdp() -> None:
    """Wrap FSDP2; once a process.

    Raises:
        AttributeError, ImportError: this torch has not what we rely on; nothing was changed.
    """
    if isinstance(vars(collectives)["dist"], _Distributed):
        return
    standin = _Distributed(dist)
    places = [
        (FSDPParamGroup, "post_backward", _post_backward),
        (FSDPState, "_root_pre_forward", _root_pre_forward),
        (FSDPState, "_root_post_backward_final_callback", _root_post_backward),
    ]
    wrapped = [(owner, name, wrap(getattr(owner, name))) for owner, name, wrap in places]
    for owner, name, method in wrapped:
        setattr(owner, name, method)
    vars(collectives)["dist"] = standin
    loss.watch()


class _Distributed(ModuleType):
    """``torch.distributed`` as FSDP2's collectives see it."""

    def __init__(self, original: ModuleType) -> None:
        super().__init__(original.__name__)
        self._original = original
        # Asked for now, so that a torch without them is left alone.
        _ = original.reduce_scatter_single, original.all_reduce

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def reduce_scatter_single(self, **kwargs: Any) -> Any:
        native = functools.partial(self._original.reduce_scatter_single, **kwargs)
        owner = _current.group
        if owner is None or isinstance(owner.mesh_info, DDPMeshInfo) or kwargs.get("async_op"):
            return native()
        reductions = _of(owner, kwargs["group"])
        return native() if reductions is None else reductions.timed(kwargs["input"].nbytes, native)

    def all_reduce(self, tensor: torch.Tensor, **kwargs: Any) -> Any:
        native = functools.partial(self._original.all_reduce, tensor, **kwargs)
        owner = _current.group
        if owner is None or kwargs.keys() != {"op", "group"}:
            return native()
        reductions = _of(owner, kwargs["group"])
        return (
            native() if reductions is None else reductions.all_reduce(tensor, kwargs["op"], native)
        )


def _post_backward(original: Call) -> Call:
    @functools.wraps(original)
    def wrapped(group: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(group, *args, **kwargs)
        _current.group = group
        try:
            return original(group, *args, **kwargs)
        finally:
            _current.group = None

    return wrapped


def _root_pre_forward(original: Call) -> Call:
    @functools.wraps(original)
    def wrapped(state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(state, *args, **kwargs)
        reductions = _known(state)
        if reductions is not None and state._is_root and torch.is_grad_enabled():
            reductions.forward()
        return result

    return wrapped


def _root_post_backward(original: Call) -> Call:
    @functools.wraps(original)
    def wrapped(state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(state, *args, **kwargs)
        reductions = _known(state)
        if reductions is not None:
            reductions.backward_ended()
        return result

    return wrapped


def _communication(owner: Any) -> Any:
    """What the parts of one root share; ``owner`` is a state or a parameter group."""
    return getattr(owner, "comm_ctx", None) or getattr(owner, "_comm_ctx", None)


def _known(owner: Any) -> Reductions | None:
    """What ``_of`` has made."""
    communication = _communication(owner)
    return None if communication is None else _reductions.get(communication)


def _of(owner: Any, group: dist.ProcessGroup) -> Reductions | None:
    """The reductions of ``owner``'s root, made now if there are none yet; None if those over
    ``group`` are left alone."""
    communication = _communication(owner)
    if communication not in _reductions:
        made = None
        try:
            made = _make(owner, group)
        except Exception as error:  # torch's private parts may differ; the script must run
            say(f"an FSDP2 module is left alone: {error!r}")
        _reductions[communication] = made
        modules.mark_seen()
        if made is not None:
            weakref.finalize(communication, made.close).atexit = False
            modules.close_at_end(made)
    known = _reductions[communication]
    return known if known is not None and known.group is group else None


def _make(owner: Any, group: dist.ProcessGroup) -> Reductions | None:
    device = owner.device
    if device.type not in ("cpu", "cuda"):
        say(f"an FSDP2 module is left alone: device {device.type} is not supported")
        return None
    is_replicated = isinstance(owner.mesh_info, DDPMeshInfo)
    groups = _replica_groups(owner.mesh_info, group) if is_replicated else ()
    members = dist.get_process_group_ranks(group) if is_replicated else []
    context = modules.shared_context(
        device.type,
        backend_of(group),
        collective=Collective.ALLREDUCE if is_replicated else Collective.REDUCE_SCATTER,
        replicas=() if len(groups) == 1 else members,
    )
    observer = ModuleObserver(device.type, lambda: (context, modules.join(observer)))
    observer.open()
    plans = None
    if groups and group.size() > 1:
        plans = ReplicaPlans(ReplicaGroupFactory(group, groups), observer)
    return Reductions(group, device, observer, plans)


def _replica_groups(mesh_info: Any, group: dist.ProcessGroup) -> tuple[tuple[int, ...], ...]:
    """All replica groups if they fill the job and ``group`` is one of them; else none."""
    if mesh_info.replicate_mesh_dim is None:
        return ()
    groups = replica_groups(mesh_info.mesh.mesh, mesh_info.replicate_mesh_dim)
    everyone = sorted(rank for members in groups for rank in members)
    if everyone != list(range(dist.get_world_size())):
        return ()
    return groups if tuple(dist.get_process_group_ranks(group)) in groups else ()
