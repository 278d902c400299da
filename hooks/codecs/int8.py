"""int8: blocks of 256 elements with one scale, shared by all ranks, so that int8 can be *summed*.

With one scale for all ranks the sum of the quantised gradients is the quantised sum, so the plan
in force adds them as it adds any bucket, exactly, in any order. For N ranks with largest
magnitudes a_1..a_N in a block, A = a_1 + .. + a_N and L = 127 - N/2, rank i sends

    q_i = round(g_i L / A),    |q_i| <= a_i L / A + 1/2,    so |sum of q_i| <= L + N/2 = 127

and no partial sum overflows. A itself is one small sum before (4 bytes for 256 elements: the
gradients shrink to 1/4 + 1/256 of float32). Each rank rounds to steps of A / L: with equal
magnitudes N / (127 - N/2) of its own largest (1/63 for 2 ranks, 1/31 for 4, 1/15 for 8, 1/7 for
16), and error feedback sends the rest later. Above 64 ranks most elements would round to 0.

The other way, an all-to-all of int8, sums in float32 and an all-gather of int8, keeps 8 bits for
any N, but can't follow a plan; torch's own quantisation hooks gather every rank's bucket, which
is N/2 times the bytes of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs.exchange import CodecCollectives
from trainmesh.hooks.codecs.gradient import Gradient, working_dtype
from trainmesh.hooks.codecs.memory import ErrorFeedback, Scratch, all_finite

__all__ = ["Int8"]

BLOCK = 256
"""Values that share a scale: its four bytes add 1.6 %, and one large value spoils few others."""
LARGEST = 127
"""Of an int8, used symmetrically: -128 stays unused."""
TINY = 1e-30
"""Blocks whose largest magnitudes add up to less stay with the error feedback: L / A must not
overflow."""


class Int8:
    """See the module."""

    max_world_size = 64
    num_exchanges = 2

    def __init__(self, options: str) -> None:
        if options:
            raise ConfigError(f"codec int8 has no options, got {options!r}")
        self._scratch = Scratch()

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        buffer = gradient.buffer
        numel, dtype = buffer.numel(), working_dtype(buffer.dtype)
        blocks = -(-numel // BLOCK)
        unsent = self._blocks("unsent", blocks, dtype, buffer)
        unsent.view(-1)[numel:].zero_()
        memory.add_to(gradient, unsent.view(-1)[:numel])

        levels = LARGEST - exchange.world_size / 2
        values = self._blocks("values", blocks, dtype, buffer)
        total = self._scratch.get("total", blocks, dtype, buffer.device)
        torch.amax(torch.abs(unsent, out=values), dim=1, out=total)
        exchange.sum(total).wait()
        finite = all_finite(total)
        scale = (total / levels).unsqueeze(1)
        per_step = torch.where(total > TINY, levels / total, 0).unsqueeze(1)

        torch.mul(unsent, per_step, out=values).round_()
        quantised = self._blocks("quantised", blocks, torch.int8, buffer).copy_(values)
        # Only what carries something goes on the wire: not the padding of the last block.
        summing = exchange.sum(quantised.view(-1)[:numel])
        unsent.addcmul_(values, scale, value=-1)
        memory.keep(gradient, unsent.view(-1)[:numel], finite)
        summing.wait()
        values.copy_(quantised).mul_(scale)
        buffer.copy_(values.view(-1)[:numel])

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        numel = sum(map(prod, shapes))
        return numel + max(4, itemsize) * -(-numel // BLOCK)

    def _blocks(
        self, name: str, blocks: int, dtype: torch.dtype, like: torch.Tensor
    ) -> torch.Tensor:
        return self._scratch.get(name, blocks * BLOCK, dtype, like.device).view(blocks, BLOCK)
