"""A future that we complete ourselves, and whose errors keep their messages."""

from __future__ import annotations

import torch
from torch.futures import Future

__all__ = ["Promise"]


class Promise:
    """``future`` is given away; it completes with a tensor or raises a RuntimeError."""

    __slots__ = ("_error", "_inner", "future")

    def __init__(self, device: torch.device) -> None:
        self._error: str | None = None
        self._inner: Future[torch.Tensor] = (
            Future(devices=[device]) if device.type == "cuda" else Future()
        )
        self.future: Future[torch.Tensor] = self._inner.then(self._checked)

    def keep(self, tensor: torch.Tensor) -> None:
        """The tensor is there, or will be when the current stream has come so far."""
        self._inner.set_result(tensor)

    def break_(self, error: str) -> None:
        """There will be no tensor."""
        self._error = error
        self._inner.set_result(torch.empty(0))

    def _checked(self, inner: Future[torch.Tensor]) -> torch.Tensor:
        # Raised here rather than set as the future's exception: of that, DDP would only say that
        # it can't be cast to a tensor.
        if self._error is not None:
            raise RuntimeError(self._error)
        result: torch.Tensor = inner.value()
        return result
