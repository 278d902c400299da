"""Tracks a reducer's position among its buckets, which it reduces in the same order in every
step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._C._distributed_c10d import Reducer

__all__ = ["BucketOrder"]


class BucketOrder:
    """Of one reducer. ``numel``: of all gradients that it reduces."""

    def __init__(self, numel: int) -> None:
        self._numel = numel
        self._seen = 0
        self._index = 0
        self._numels: list[int] = []
        """Of the buckets of the step in progress, or of the last one."""
        self._parameters: list[tuple[torch.Tensor, ...]] | None = None
        self._known: list[int] = []
        """Elements of each bucket when ``_parameters`` was read."""

    @property
    def knows_parameters(self) -> bool:
        return self._parameters is not None

    def restart(self) -> None:
        """A backward pass is about to begin: no bucket is under way."""
        self._seen = self._index = 0

    def next(self, buffer: torch.Tensor) -> tuple[int, bool]:
        """The place of this bucket in its step, and whether it is the step's last."""
        if not self._seen:
            self._index = 0
            self._numels = []
        index, self._index = self._index, self._index + 1
        numel = buffer.numel()
        self._numels.append(numel)
        self._seen += numel
        is_last = self._seen >= self._numel
        if is_last:
            self._seen = 0
        return index, is_last

    def leave(self) -> int:
        """The rest of this step's buckets won't be told; how many elements they have."""
        left, self._seen = self._numel - self._seen if self._seen else 0, 0
        return left

    def read_parameters(self, reducer: Reducer, *, rebuilt: bool) -> None:
        """Ask ``reducer`` whose gradients its buckets hold, if that may have changed.

        Between two backward passes only. It makes a zero tensor of each bucket on the way.
        """
        if self._parameters is None or rebuilt or self._known != self._numels:
            buckets = reducer._get_zeros_like_grad_buckets()
            self._parameters = [tuple(bucket.parameters()) for bucket in buckets]
            self._known = [bucket.buffer().numel() for bucket in buckets]

    def parameters(self, index: int, buffer: torch.Tensor) -> Sequence[torch.Tensor]:
        """Those whose gradients bucket ``index`` holds, one after the other; none if unknown."""
        if self._parameters is None or index >= len(self._known):
            return ()
        return self._parameters[index] if self._known[index] == buffer.numel() else ()
