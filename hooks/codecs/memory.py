"""The memory of codecs from step to step, by parameter.

DDP rebuilds its buckets after the first step, fusion and plans change them again, so nothing may be
kept by bucket. But a tensor operation for every parameter would be slow. So the memory of one
bucket's parameters is one flat tensor while they stay in one bucket, and is moved when they come to
other buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from trainmesh.hooks.codecs.gradient import Gradient, GradientLayout, working_dtype

__all__ = ["ErrorFeedback", "Scratch", "ParameterTensors", "all_finite"]


class ParameterTensors:
    """A tensor for every parameter; ``fill`` sets those that are new."""

    def __init__(self, fill: Callable[[torch.Tensor], object]) -> None:
        self._fill = fill
        self._flat: dict[GradientLayout, torch.Tensor] = {}
        self._homes: dict[Hashable, GradientLayout] = {}
        """The layout in which each parameter was seen last."""
        self._places: dict[Hashable, torch.Tensor] = {}
        """Its part of that layout's flat tensor."""

    def flat(
        self, layout: GradientLayout, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The tensors of all parameters of ``layout``, one after the other: change it in place."""
        known = self._flat.get(layout)
        if known is not None:
            return known
        flat = torch.empty(layout.numel, dtype=dtype, device=device)
        for key, offset, numel, _ in layout.slices:
            place = flat[offset : offset + numel]
            before = self._places.get(key)
            if before is not None and before.numel() == numel:
                place.copy_(before)
            else:
                self._fill(place)
            self._move(key, layout, place)
        self._flat[layout] = flat
        return flat

    def take(self, layout: GradientLayout) -> torch.Tensor | None:
        """The tensors of ``layout``, which are forgotten; None if none of them is known."""
        known = [self._places[one.key] for one in layout.slices if one.key in self._places]
        if not known:
            return None
        flat = self.flat(layout, known[0].dtype, known[0].device)
        for key, *_ in layout.slices:
            del self._homes[key], self._places[key]
        del self._flat[layout]
        return flat

    def __len__(self) -> int:
        return len(self._places)

    def _move(self, key: Hashable, layout: GradientLayout, place: torch.Tensor) -> None:
        # The layout that it leaves would be out of date, should it come back.
        home = self._homes.get(key)
        if home is not None:
            self._flat.pop(home, None)
        self._homes[key] = layout
        self._places[key] = place


class ErrorFeedback:
    """The part of every parameter's gradients that has not been sent yet; it is added to the next
    one (Karimireddy et al. 2019, arXiv:1901.09847). So the error of one step is delayed, not lost.

    Belongs to the job, not to a codec: it outlives switches of codecs and plans. One thread.
    """

    def __init__(self) -> None:
        self._store = ParameterTensors(torch.Tensor.zero_)

    def add_to(self, gradient: Gradient, out: torch.Tensor) -> None:
        """Write to ``out`` (in the working dtype) the gradient plus what has not been sent."""
        torch.add(gradient.buffer, self._flat(gradient), out=out)

    def keep(self, gradient: Gradient, unsent: torch.Tensor, finite: torch.Tensor) -> None:
        """Remember ``unsent`` for the next step; what was remembered stays if the step's sum was
        not ``finite`` (a tensor of one bool, alike on all ranks), for no optimizer should use it.
        """
        flat = self._flat(gradient)
        torch.where(finite, unsent, flat, out=flat)

    def flush(self, gradient: Gradient) -> None:
        """Add to the gradient, in place, what has not been sent, and forget it: before a sum
        without compression. Cheap when there is nothing."""
        if len(self._store):
            unsent = self._store.take(gradient.layout)
            if unsent is not None:
                gradient.buffer.add_(unsent)

    @property
    def empty(self) -> bool:
        """Whether everything has been flushed."""
        return not len(self._store)

    def _flat(self, gradient: Gradient) -> torch.Tensor:
        buffer = gradient.buffer
        return self._store.flat(gradient.layout, working_dtype(buffer.dtype), buffer.device)


class Scratch:
    """Buffers that are used again in every step, by name; each grows to the largest bucket's."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def get(self, name: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """``numel`` elements with any values."""
        key = (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < numel:
            buffer = self._buffers[key] = torch.empty(numel, dtype=dtype, device=device)
        return buffer[:numel]


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of one bool. (Smallest and largest tell it, a NaN is both; ``isfinite`` of every
    element takes 20 times as long on a CPU.)"""
    smallest, largest = torch.aminmax(tensor)
    return torch.isfinite(smallest) & torch.isfinite(largest)
