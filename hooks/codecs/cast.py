"""Sums in half precision: bf16 and fp16; and none, the uncompressed sum.

As torch's ``bf16_compress_hook`` and ``fp16_compress_hook``, which can't be used themselves: they
are tied to one process group's all-reduce. The additions of the sum round to half precision too;
that part can't be fed back, because no single rank knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs.exchange import CodecCollectives
from trainmesh.hooks.codecs.gradient import Gradient, working_dtype
from trainmesh.hooks.codecs.memory import ErrorFeedback, Scratch, all_finite
from trainmesh.types import MAX_RANKS

__all__ = ["Bf16", "Fp16", "Plain"]

FEEDBACK = "feedback"


class Plain:
    """No compression; what another codec has not sent is sent now."""

    max_world_size = MAX_RANKS
    num_exchanges = 1

    def __init__(self, options: str) -> None:
        if options:
            raise ConfigError(f"codec none has no options, got {options!r}")

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        memory.flush(gradient)
        exchange.sum(gradient.buffer).wait()

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        return itemsize * sum(map(prod, shapes))


class _Cast:
    """Sums in ``wire``. With the option ``feedback`` each rank remembers what its own cast cut
    off. Gradients of 16 bits go as they are."""

    max_world_size = MAX_RANKS
    num_exchanges = 1
    wire: ClassVar[torch.dtype]

    def __init__(self, options: str) -> None:
        if options not in ("", FEEDBACK):
            name = type(self).__name__.lower()
            raise ConfigError(f"codec {name}: the only option is {FEEDBACK!r}, got {options!r}")
        self._feedback = options == FEEDBACK
        self._scratch = Scratch()

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        buffer = gradient.buffer
        if buffer.element_size() <= self.wire.itemsize:
            memory.flush(gradient)
            exchange.sum(buffer).wait()
            return
        wire = self._scratch.get("wire", buffer.numel(), self.wire, buffer.device)
        if not self._feedback:
            memory.flush(gradient)
            exchange.sum(wire.copy_(buffer)).wait()
            buffer.copy_(wire)
            return
        unsent = self._scratch.get(
            "unsent", buffer.numel(), working_dtype(buffer.dtype), buffer.device
        )
        memory.add_to(gradient, unsent)
        wire.copy_(unsent)
        unsent.sub_(wire)
        exchange.sum(wire).wait()
        memory.keep(gradient, unsent, all_finite(wire))
        buffer.copy_(wire)

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        return min(itemsize, self.wire.itemsize) * sum(map(prod, shapes))


class Bf16(_Cast):
    """8 bits of precision, and the range of float32: safe for any gradients."""

    wire = torch.bfloat16


class Fp16(_Cast):
    """11 bits of precision, up to 65 504: a larger gradient becomes infinite on all ranks, as it
    would in mixed precision, and a ``GradScaler`` skips the step."""

    wire = torch.float16
