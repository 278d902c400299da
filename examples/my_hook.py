"""A hook of your own: an executor and a codec, and the test that proves them right.

    python -m trainmesh.hooks.testing executor examples/my_hook.py:GatherExecutor
    python -m trainmesh.hooks.testing codec examples/my_hook.py:SignCodec

docs/writing_a_hook.md goes through it. A package registers them in its pyproject.toml:

    [project.entry-points."trainmesh.hooks"]
    gather = "my_hook:GatherExecutor"
    "codec.sign" = "my_hook:SignCodec"
"""

from collections.abc import Sequence
from math import prod

import torch
from torch.futures import Future

from trainmesh.errors import ConfigError, PlanError
from trainmesh.hooks.codecs import CodecCollectives, ErrorFeedback, Gradient
from trainmesh.hooks.executor import GroupFactory
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan


class GatherExecutor:
    """Every rank gets all ranks' buckets and adds them up itself: N/2 times the bytes of a ring
    but one message's latency, so for small buckets; and the sum is rounded once."""

    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None:
        group = group_factory.new_group(plan.order)  # a group of our own
        if group is None:
            raise PlanError(f"gather: rank {group_factory.rank} is not in the order")
        self._group_factory = group_factory
        self._group = group

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        gathered = buffer.new_empty((self._group.size(), buffer.numel()))
        work = self._group._allgather_base(gathered.view(-1), buffer)

        def add(done: Future[list[torch.Tensor]]) -> torch.Tensor:
            # On the backend's thread: calculate here, but start no collectives, and don't hold
            # the group (through self), for a group that ends on its own thread aborts.
            done.value()  # raises what went wrong
            torch.sum(gathered, dim=0, out=buffer)
            mark.end()
            return buffer

        return work.get_future().then(add)

    def close(self) -> None:
        self._group_factory.release(self._group)


class SignCodec:
    """Sends one byte an element: its sign, times the mean magnitude of the bucket over all ranks.
    (Karimireddy et al. 2019, arXiv:1901.09847: with error feedback this converges.)"""

    max_world_size = 127  # the sum of so many signs fits into int8
    num_exchanges = 2

    def __init__(self, options: str) -> None:
        if options:
            raise ConfigError(f"codec sign has no options, got {options!r}")

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
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
