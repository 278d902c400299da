"""A hook of your own: an executor and a codec, and the test that proves them right.

    python -m trainmesh.hooks.testing executor examples/my_hook.py:StarExecutor
    python -m trainmesh.hooks.testing codec examples/my_hook.py:SignCodec

docs/writing_a_hook.md goes through it. A package registers them in its pyproject.toml:

    [project.entry-points."trainmesh.hooks"]
    star = "my_hook:StarExecutor"
    "codec.sign" = "my_hook:SignCodec"
"""

from collections.abc import Sequence
from math import prod

import torch
from torch.futures import Future

from trainmesh.errors import ConfigError, PlanError
from trainmesh.hooks.codecs import ErrorFeedback, Exchange, Gradient
from trainmesh.hooks.executor import Fabric
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan


class StarExecutor:
    """Every rank sends its buckets to the first rank of the plan's order, which sends back the
    sum: the backend's reduce and broadcast, one after the other."""

    def __init__(self, plan: Plan, fabric: Fabric) -> None:
        # A group of our own; its rank 0 is the first of the order.
        group = fabric.new_group(plan.order)
        if group is None:
            raise PlanError(f"star: rank {fabric.rank} is not in the order")
        self._fabric = fabric
        self._group = group

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        # Both are started now and on every rank in this order, so buckets can't mix; the group
        # carries out the broadcast after the reduce.
        reduced = self._group.reduce(buffer, 0).get_future()

        def broadcast(done: Future[list[torch.Tensor]]) -> torch.Tensor:
            done.value()  # raises what went wrong
            self._group.broadcast(buffer, 0).wait()
            mark.end()
            return buffer

        return reduced.then(broadcast)

    def close(self) -> None:
        self._fabric.release(self._group)


class SignCodec:
    """Sends one byte an element: its sign, times the mean magnitude of the bucket over all ranks.
    (Karimireddy et al. 2019, arXiv:1901.09847: with error feedback this converges.)"""

    max_world_size = 127  # the sum of so many signs fits into int8
    num_exchanges = 2

    def __init__(self, options: str) -> None:
        if options:
            raise ConfigError(f"codec sign has no options, got {options!r}")

    def reduce(self, gradient: Gradient, exchange: Exchange, memory: ErrorFeedback) -> None:
        buffer = gradient.buffer
        # What to send: this step's gradient and what was not sent before, at least in float32.
        unsent = torch.empty_like(buffer, dtype=torch.promote_types(buffer.dtype, torch.float32))
        memory.add_to(gradient, unsent)

        scale = unsent.abs().mean(0, keepdim=True)
        exchange.sum(scale).wait()
        scale /= exchange.world_size
        signs = unsent.sign().to(torch.int8)
        summing = exchange.sum(signs)  # in place: take what we need of our own first

        # A NaN or infinity of any rank is in the scale now, on all ranks: the result is not
        # finite, and the memory stays as it was.
        memory.keep(gradient, unsent - unsent.sign() * scale, torch.isfinite(scale).all())
        summing.wait()
        buffer.copy_(signs * scale)

    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        return sum(map(prod, shapes)) + max(4, itemsize)
