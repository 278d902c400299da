"""topk: of every block of 1 024 elements, each rank sends those of the largest magnitude.

The ranks choose different elements, so this is not a sum but a gather of values and positions,
added in rank order: (N-1) k times 6 bytes on every rank's link, whatever the plan. It pays only
where few are sent: in float32 a fraction f has 4 / (3 N f) times fewer bytes. Blocks because a
search over a whole bucket takes several times as long on a CPU, and because 16 bits hold a position
then.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs.exchange import CodecCollectives
from trainmesh.hooks.codecs.gradient import Gradient, working_dtype
from trainmesh.hooks.codecs.memory import ErrorFeedback, Scratch, all_finite
from trainmesh.types import MAX_RANKS

__all__ = ["TopK"]

BLOCK = 1024
"""Positions within so many values fit into ``POSITION_BYTES``."""
DEFAULT_FRACTION = 0.01
"""One value in a hundred: with its position 66 times fewer bytes than float32."""
POSITION_BYTES = 2
"""Of an int16."""
ALIGNMENT = 8
"""Values of every rank begin at a multiple of this."""


class TopK:
    """See the module; the option is the fraction that is sent, 0.01 unless given."""

    max_world_size = MAX_RANKS
    num_exchanges = 1

    def __init__(self, options: str) -> None:
        self._fraction = _fraction(options)
        self._scratch = Scratch()

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        buffer = gradient.buffer
        numel, device, dtype = buffer.numel(), buffer.device, working_dtype(buffer.dtype)
        blocks, block, count = self._shape(numel)
        flat = self._scratch.get("unsent", blocks * block, dtype, device)
        flat[numel:].zero_()
        memory.add_to(gradient, flat[:numel])

        unsent = flat.view(blocks, block)
        magnitudes = self._scratch.get("sum", blocks * block, dtype, device).view(blocks, block)
        torch.abs(unsent, out=magnitudes)
        # A NaN counts as the largest, so it is sent.
        positions = torch.topk(magnitudes, count, dim=1, sorted=False).indices
        wire = self._scratch.get(
            "wire", _wire_bytes(blocks * count, dtype.itemsize), torch.uint8, device
        )
        values, short = _parts(wire, blocks, count, dtype)
        torch.gather(unsent, 1, positions, out=values)
        short.copy_(positions)
        gathering = exchange.gather(wire)
        unsent.scatter_(1, positions, 0)

        received = [_parts(one, blocks, count, dtype) for one in gathering.wait().unbind()]
        finite = torch.stack([all_finite(values) for values, _ in received]).all()
        memory.keep(gradient, flat[:numel], finite)
        result = magnitudes.zero_()
        for values, short in received:  # no position comes twice from one rank: no races
            result.scatter_add_(1, short.long(), values)
        buffer.copy_(result.view(-1)[:numel])

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        """A gather of b bytes from each rank loads the links as an all-reduce of N b / 2."""
        blocks, _, count = self._shape(sum(map(prod, shapes)))
        return _wire_bytes(blocks * count, max(4, itemsize)) * world_size / 2

    def _shape(self, numel: int) -> tuple[int, int, int]:
        """Number of blocks, their size, and how many elements of each are sent."""
        block = min(numel, BLOCK)
        return -(-numel // block), block, max(1, round(self._fraction * block))


def _fraction(options: str) -> float:
    try:
        fraction = float(options) if options else DEFAULT_FRACTION
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"codec topk: the option is the fraction to send, up to 1, got {options!r}"
        )
    return fraction


def _wire_bytes(num_values: int, itemsize: int) -> int:
    nbytes = num_values * (itemsize + POSITION_BYTES)
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _parts(
    wire: torch.Tensor, blocks: int, count: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The values and their positions in one rank's message."""
    num_values = blocks * count
    middle = num_values * dtype.itemsize
    values = wire[:middle].view(dtype)
    positions = wire[middle : middle + POSITION_BYTES * num_values].view(torch.int16)
    return values.view(blocks, count), positions.view(blocks, count)
