"""The loss of an unmodified script: the scalar on which ``backward()`` was last called.

It is read after the step. A loss on a GPU is copied to pinned memory without blocking and read
when the copy has passed, so no synchronisation is added. Under a gradient scaler it is the
scaled loss, with gradient accumulation the last part's. Only a plain real tensor is a loss here:
to read a complex, a distributed or a traced one would raise, communicate or break a graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from trainmesh.hooks.context import say_once

__all__ = ["PendingLoss", "take", "want", "watch"]


class PendingLoss:
    """A scalar whose value may still be on its way from a GPU."""

    __slots__ = ("_copied", "_value")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._value = tensor.detach()
        self._copied: torch.cuda.Event | None = None
        if self._value.is_cuda:
            pinned = torch.empty((), dtype=self._value.dtype, pin_memory=True)
            self._value = pinned.copy_(self._value.reshape(()), non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def value(self) -> float | None:
        """The loss; None if it is not known yet or not a finite number. Never raises."""
        try:
            return self._read()
        except Exception as error:  # steps are measured on without it
            say_once("loss", f"a loss can't be read: {error!r}")
            return None

    def _read(self) -> float | None:
        if self._copied is not None and not self._copied.query():
            return None
        loss = float(self._value)
        return loss if math.isfinite(loss) else None


def _is_loss(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and tensor.numel() == 1
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


_last: PendingLoss | None = None
_is_wanted = True


def want(is_wanted: bool) -> None:
    """Whether the next step's loss is of use: of many short steps most are measured without."""
    global _is_wanted
    _is_wanted = is_wanted


def watch() -> None:
    """Remember the scalars on which ``torch.Tensor.backward`` is called from now on."""
    backward: Callable[..., None] = torch.Tensor.backward
    if hasattr(backward, "__wrapped__"):
        return

    @functools.wraps(backward)
    def watched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        _note(tensor)
        backward(tensor, *args, **kwargs)

    torch.Tensor.backward = watched  # type: ignore[method-assign,assignment]


def _note(tensor: torch.Tensor) -> None:
    global _last
    if not _is_wanted:
        return
    try:
        if _is_loss(tensor):
            _last = PendingLoss(tensor)
    except Exception as error:  # the backward pass must run, whatever it was called on
        say_once("loss", f"a loss can't be read: {error!r}")


def take() -> PendingLoss | None:
    """The newest loss; each is taken once."""
    global _last
    loss, _last = _last, None
    return loss
