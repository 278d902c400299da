"""A script's own communication hook, with timing around it and nothing else changed.

DDP's built-in hooks too: torch's are in C++ and go into a reducer that has no other hook, so
here they are in Python, operation for operation (torch's default_comm_hooks.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BuiltinCommHookType, GradBucket
from torch.futures import Future

from trainmesh.hooks.timing import Mark

__all__ = ["BUILT_IN", "UserHook"]

Hook = Callable[[Any, GradBucket], Future[torch.Tensor]]


class UserHook:
    """``hook`` with its ``state``, as it was registered."""

    def __init__(self, state: object, hook: Hook, name: str = "") -> None:
        self._state = state
        self._hook = hook
        self.name = name or str(getattr(hook, "__qualname__", hook))
        self.is_new = True

    def reduce(self, bucket: GradBucket, mark: Mark) -> Future[torch.Tensor]:
        """What the script's hook returns."""
        future = self._hook(self._state, bucket)
        if isinstance(future, Future):  # else DDP says what is wrong with it
            future.add_done_callback(lambda _: mark.end())
        return future


def _all_reduce(group: dist.ProcessGroup, bucket: GradBucket) -> Future[torch.Tensor]:
    buffer = bucket.buffer()
    buffer.div_(group.size())
    return _first(group.allreduce([buffer]).get_future())


def _fp16_compress(group: dist.ProcessGroup, bucket: GradBucket) -> Future[torch.Tensor]:
    buffer = bucket.buffer()
    compressed = buffer.to(torch.float16)
    compressed.div_(group.size())

    def decompress(future: Future[list[torch.Tensor]]) -> torch.Tensor:
        return buffer.copy_(future.value()[0])

    done: Future[torch.Tensor] = group.allreduce([compressed]).get_future().then(decompress)
    return done


def _first(future: Future[list[torch.Tensor]]) -> Future[torch.Tensor]:
    def first(future: Future[list[torch.Tensor]]) -> torch.Tensor:
        return future.value()[0]

    done: Future[torch.Tensor] = future.then(first)
    return done


BUILT_IN: dict[BuiltinCommHookType, Hook] = {
    BuiltinCommHookType.ALLREDUCE: _all_reduce,
    BuiltinCommHookType.FP16_COMPRESS: _fp16_compress,
}
"""Their state is the process group."""
