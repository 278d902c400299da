"""The cost of a codec on this machine, without the network, for the break-even rule."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch.futures import Future

from trainmesh.hooks.codecs.codec import codec
from trainmesh.hooks.codecs.exchange import LoneExchange
from trainmesh.hooks.codecs.gradient import Gradient, GradientLayout
from trainmesh.hooks.codecs.memory import ErrorFeedback

__all__ = ["Cost", "measure_cost"]

WARM_UP = 2
"""Rounds that are not counted: they allocate."""
ROUNDS = 5
"""Rounds of which the median counts: two disturbed ones do no harm."""


class Cost(NamedTuple):
    """Seconds before the last collective of a bucket begins, and after it has ended."""

    encode_s: float
    decode_s: float


def measure_cost(
    text: str,
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: torch.device,
    world_size: int,
) -> Cost:
    """Time codec ``text`` on a bucket of random gradients of ``shapes``.

    Makes a codec, a memory, buffers and random numbers of its own; waits for the device; takes
    about seven times what one bucket takes.

    Raises:
        ConfigError: there is no such codec.
    """
    layout = GradientLayout.of(dict(enumerate(shapes)))
    made = codec(text, world_size)
    memory = ErrorFeedback()
    draws = torch.Generator(device).manual_seed(0)  # the script's own draws stay as they are
    source = torch.randn(layout.numel, generator=draws, device=device).to(dtype)
    buffer = torch.empty_like(source)
    costs = []
    for _ in range(WARM_UP + ROUNDS):
        exchange = _TimedExchange(world_size, device)
        buffer.copy_(source)
        begin = exchange.now()
        made.reduce(Gradient(buffer, layout), exchange, memory)
        end = exchange.now()
        costs.append((exchange.began - begin - exchange.spent_before, end - exchange.ended))
    encode, decode = zip(*costs[WARM_UP:], strict=True)
    return Cost(median(encode), median(decode))


class _TimedExchange(LoneExchange):
    """Notes when the last collective began and ended, and what those before it took."""

    def __init__(self, world_size: int, device: torch.device) -> None:
        super().__init__(world_size)
        self._device = device
        self.began = self.ended = self.now()
        self.spent_before = 0.0

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        self._begin()
        future = super().sum(tensor)
        self.ended = self.now()
        return future

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        self._begin()
        future = super().gather(tensor)
        self.ended = self.now()
        return future

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()

    def _begin(self) -> None:
        if self.ended != self.began:
            self.spent_before += self.ended - self.began
        self.began = self.now()
