"""Times a script's own communication hook, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from trainmesh.hooks.timing import Mark, NoMark

__all__ = ["UserHook"]

Hook = Callable[[Any, GradBucket], Future[torch.Tensor]]


class UserHook:
    """``hook`` with its ``state``, as it was registered."""

    def __init__(self, state: object, hook: Hook) -> None:
        self._state = state
        self._hook = hook
        self.name = str(getattr(hook, "__qualname__", hook))

    def reduce(self, bucket: GradBucket, mark: Mark) -> Future[torch.Tensor]:
        """What the script's hook returns."""
        future = self._hook(self._state, bucket)
        # What ``then`` returns is the C++ class alone; anything else DDP refuses itself.
        if isinstance(future, torch._C.Future) and not isinstance(mark, NoMark):
            future.add_done_callback(lambda _: mark.end())
        return future
