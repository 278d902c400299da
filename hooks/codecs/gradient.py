"""A bucket as a codec sees it: one flat buffer, and the place of each parameter's gradient in
it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch

__all__ = ["Gradient", "GradientLayout", "Layouts", "Slice", "working_dtype"]

MAX_LAYOUTS = 256
"""Of buckets that are remembered; DDP builds its buckets twice, so more are of models that went."""


class Slice(NamedTuple):
    """The gradient of parameter ``key`` in a bucket. ``shape`` is as it lies in memory, so that
    a matrix is a matrix even where a tensor's strides are not those of its shape."""

    key: Hashable
    offset: int
    numel: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GradientLayout:
    """Where the parameters of a bucket lie, one after the other. Hashed by identity: the same
    object comes back in every step (``Layouts``), so that what depends on it is made once."""

    slices: tuple[Slice, ...]
    numel: int

    @classmethod
    def of(cls, shapes: Mapping[Any, Sequence[int]]) -> GradientLayout:
        """Tensors of ``shapes`` by key (anything hashable), one after the other."""
        slices, offset = [], 0
        for key, shape in shapes.items():
            slices.append(Slice(key, offset, prod(shape), tuple(shape)))
            offset += prod(shape)
        return cls(tuple(slices), offset)


@dataclass(frozen=True, eq=False)
class Gradient:
    """One bucket of one step: a dense 1-D ``buffer`` and its ``layout``."""

    buffer: torch.Tensor
    layout: GradientLayout

    def __post_init__(self) -> None:
        if self.buffer.shape != (self.layout.numel,):
            raise ValueError(
                f"a buffer of shape {tuple(self.buffer.shape)} for a layout of "
                f"{self.layout.numel} elements"
            )


class Layouts:
    """Remembers the layouts of one module's buckets. A parameter's key is its ``id``, so the
    parameters are kept alive here."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[GradientLayout, tuple[torch.Tensor, ...]]] = {}

    def of(self, parameters: Sequence[torch.Tensor]) -> GradientLayout:
        """The layout of a bucket that holds the gradients of ``parameters`` in this order."""
        ids = tuple(map(id, parameters))
        known = self._known.get(ids)
        if known is None:
            if len(self._known) >= MAX_LAYOUTS:
                self._known.clear()
            layout = GradientLayout.of({id(one): _memory_shape(one) for one in parameters})
            known = self._known[ids] = layout, tuple(parameters)
        return known[0]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What codecs calculate in, and remember in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def _memory_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Its dimensions from the outermost in memory to the innermost. DDP lays a gradient out by
    its parameter's strides where these leave no holes, else as if it were contiguous."""
    sizes = [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)]
    dense = [(stride, size) for stride, size in sizes if size != 1]
    ordered = sorted(dense, key=lambda one: one[0], reverse=True)
    expected = 1
    for stride, size in reversed(ordered):
        if stride != expected:
            return tuple(size for _, size in dense)
        expected *= size
    return tuple(size for _, size in ordered)
