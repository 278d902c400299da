"""The stand-in for a process group that DDP's reducer gets.

Its all-reduces of buckets go to the dispatcher, all else to the group that it stands for. A
communication hook would be the documented way, and costs each bucket more than it does here: the
reducer leaves the division to a hook, which is one more pass over the bucket, and a hook's future
has to complete in Python, on the backend's thread, and be read in Python again. Here the reducer
divides while it copies, as it does without us, in whatever way its options ask for; what the
dispatcher returns for the native plan is the backend's own work; and the one hook that a reducer
takes is free for the script's.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist

__all__ = ["AllReduce", "ReducerGroup"]


class AllReduce(Protocol):
    """Sums the one tensor of ``tensors`` over all ranks, in place."""

    def __call__(self, tensors: list[torch.Tensor], opts: dist.AllreduceOptions) -> dist.Work: ...


class ReducerGroup(dist.ProcessGroup):
    """Stands for ``parent``. A reducer asks a group for no other collective than these two."""

    def __init__(self, parent: dist.ProcessGroup, all_reduce: AllReduce) -> None:
        super().__init__(parent.rank(), parent.size())  # type: ignore[call-arg]
        self._parent = parent
        self._all_reduce = all_reduce

    def allreduce(  # type: ignore[override]
        self, tensors: list[torch.Tensor], opts: dist.AllreduceOptions
    ) -> dist.Work:
        return self._all_reduce(tensors, opts)

    def broadcast(  # type: ignore[override]
        self, tensors: list[torch.Tensor], opts: dist.BroadcastOptions
    ) -> dist.Work:
        return self._parent.broadcast(tensors, opts)


def _leave_out_of_graphs() -> None:
    """torch.compile would trace what the reducer calls while a compiled forward pass runs, and
    can't take a group without a name. What ``torch.compiler.disable`` does, without importing the
    compiler into scripts that don't compile."""
    methods = (ReducerGroup.allreduce, ReducerGroup.broadcast)
    try:
        evaluation: Any = vars(torch._C._dynamo)["eval_frame"]
        skip = evaluation._FrameAction.SKIP
        for method in methods:
            strategy = evaluation._FrameExecStrategy(skip, skip)
            evaluation.set_code_exec_strategy(method.__code__, strategy)
    except (AttributeError, KeyError):  # another release of torch
        for method in methods:
            left_out = torch.compiler.disable(method)
            setattr(ReducerGroup, method.__name__, left_out)


_leave_out_of_graphs()
