"""What one rank does to prove a codec right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.futures import Future

from trainmesh.hooks.codecs.codec import CODECS, Codec, codec
from trainmesh.hooks.codecs.exchange import GroupExchange
from trainmesh.hooks.codecs.gradient import Gradient, GradientLayout
from trainmesh.hooks.codecs.memory import ErrorFeedback
from trainmesh.hooks.testing.spec import Failed, Spec, factory, is_place
from trainmesh.hooks.testing.tensors import digest, random

__all__ = ["check_codec_rank"]

MATRIX_NUMEL = 64
"""From this size on a bucket of the check holds a matrix."""
NOISE = 0.3
"""Of a step beside what is the same in all: gradients of one training resemble each other."""
WIRE_SLACK = 0.01
"""Between the bytes that a codec announces and those that it sends: padding."""
MIN_PROGRESS = 0.6
"""What has not been sent is bounded, so it is a quarter of all after four times the steps; a
codec that is only late must at least get this far."""


def check_codec_rank(spec: Spec, store: Store) -> dict[str, str]:
    """Run all checks on this rank of the default group.

    Returns:
        Digests of all results, which must be the same on all ranks.

    Raises:
        Failed: a requirement is not met.
    """
    group = dist.new_group()
    assert isinstance(group, dist.ProcessGroup)  # noqa: S101 - every rank is in it
    exchange = _CountingExchange(group)
    digests = {}
    for name in spec.dtypes:
        for numel in spec.sizes:
            run = _Run(spec, _made(spec, exchange.world_size), exchange, getattr(torch, name))
            digests.update(run.check(numel))
    dist.destroy_process_group(group)
    return digests


def _made(spec: Spec, world_size: int) -> Codec:
    if is_place(spec.target) and spec.target.partition(":")[0] not in CODECS:
        make: Callable[[str], Codec] = factory(spec.target)
        return make(spec.options)
    return codec(f"{spec.target}:{spec.options}" if spec.options else spec.target, world_size)


class _CountingExchange(GroupExchange):
    """Knows what was asked of it."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self.calls = 0
        self.nbytes = 0.0

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        self.calls += 1
        self.nbytes += tensor.nbytes
        return super().sum(tensor)

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        self.calls += 1
        self.nbytes += tensor.nbytes * self.world_size / 2
        return super().gather(tensor)


@dataclass
class _Totals:
    """Sums over the steps, in float64."""

    put_in: torch.Tensor
    """Over all ranks."""
    came_out: torch.Tensor
    lag: list[float] = field(default_factory=list)
    """After every step, what is missing, relative to what was put in."""

    def add(self, put_in: torch.Tensor, came_out: torch.Tensor) -> None:
        self.put_in += put_in
        self.came_out += came_out
        self.lag.append(distance(self.came_out, self.put_in))


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


class _Run:
    """One codec over many steps of one model."""

    def __init__(
        self, spec: Spec, made: Codec, exchange: _CountingExchange, dtype: torch.dtype
    ) -> None:
        self._spec = spec
        self._codec = made
        self._exchange = exchange
        self._dtype = dtype
        self._memory = ErrorFeedback()

    def check(self, numel: int) -> dict[str, str]:
        case = f"{self._exchange.world_size} ranks, {numel} elements, {self._dtype}"
        together, apart = _layouts(numel)
        totals = _Totals(torch.zeros(numel).double(), torch.zeros(numel).double())
        digests = {}
        for step in range(self._spec.steps):
            # As after DDP's first step, the same parameters come in other buckets.
            layouts = together if step < self._spec.steps // 2 else apart
            if step % 16 == 5:
                self._non_finite(case, numel, layouts, step)
            inputs = self._inputs(numel, step)
            buffer = inputs[self._exchange.rank].clone()
            self._reduce(case, buffer, layouts)
            if not torch.isfinite(buffer).all():
                raise Failed(f"{case}: step {step} has finite gradients and a non-finite result")
            totals.add(sum(one.double() for one in inputs), buffer.double())  # type: ignore[arg-type]
            digests[f"{case}, step {step}"] = digest(buffer)
        self._feeds_back(case, totals, apart)
        return digests

    def _inputs(self, numel: int, step: int) -> list[torch.Tensor]:
        """Of all ranks: something that lasts, and noise; divided by their number, as DDP does."""
        ranks = range(self._exchange.world_size)
        lasting = [random(rank, 0, 0, numel, torch.float64) for rank in ranks]
        noise = [random(rank, step, 1, numel, torch.float64) for rank in ranks]
        return [
            ((one + NOISE * other) / len(ranks)).to(self._dtype)
            for one, other in zip(lasting, noise, strict=True)
        ]

    def _reduce(self, case: str, buffer: torch.Tensor, layouts: list[GradientLayout]) -> None:
        begin = 0
        for layout in layouts:
            part = buffer[begin : begin + layout.numel]
            begin += layout.numel
            self._exchange.calls, self._exchange.nbytes = 0, 0.0
            self._codec.reduce(Gradient(part, layout), self._exchange, self._memory)
            shapes = [one.shape for one in layout.slices]
            said = self._codec.wire_bytes(shapes, part.element_size(), self._exchange.world_size)
            if abs(self._exchange.nbytes - said) > WIRE_SLACK * said:
                raise Failed(
                    f"{case}: wire_bytes() says {said:g}, it sends {self._exchange.nbytes:g}"
                )
            if self._exchange.calls > self._codec.num_exchanges:
                raise Failed(f"{case}: {self._exchange.calls} collectives a bucket, not as it says")

    def _non_finite(self, case: str, numel: int, layouts: list[GradientLayout], step: int) -> None:
        """A step that a GradScaler would skip; the totals prove that it leaves no trace."""
        for value in (float("nan"), float("inf"), -float("inf")):
            buffer = self._inputs(numel, step)[self._exchange.rank]
            if self._exchange.rank == self._exchange.world_size - 1:
                # In every bucket: a step is skipped as a whole, and no bucket knows of the others.
                for part in torch.split(buffer, [layout.numel for layout in layouts]):
                    part[part.numel() // 2] = value
            self._reduce(case, buffer, layouts)
            if torch.isfinite(buffer).all():
                raise Failed(f"{case}: {value} in one rank's gradient does not reach all ranks")

    def _feeds_back(self, case: str, totals: _Totals, layouts: list[GradientLayout]) -> None:
        """What was put in has come out or is still remembered, and comes out in time."""
        left = torch.zeros_like(totals.put_in)
        begin = 0
        for layout in layouts:
            self._memory.flush(Gradient(left[begin : begin + layout.numel], layout))
            begin += layout.numel
        if not self._memory.empty:
            raise Failed(f"{case}: flush() does not empty the memory: foreign keys in it")
        self._exchange.sum(left).wait()
        lost = distance(totals.came_out + left, totals.put_in)
        if not lost <= self._spec.tolerance:
            raise Failed(
                f"{case}: gradients are lost: what came out in {self._spec.steps} steps and what "
                f"is remembered differ from what was put in by {lost:.3g} of it "
                f"(allowed {self._spec.tolerance:g})"
            )
        early, late = totals.lag[len(totals.lag) // 4], totals.lag[-1]
        if late > MIN_PROGRESS * early + self._spec.tolerance:
            raise Failed(
                f"{case}: after {self._spec.steps} steps {late:.3g} of the gradients has not come "
                f"out yet, after a quarter of them {early:.3g}: what is remembered piles up"
            )


def _layouts(numel: int) -> tuple[list[GradientLayout], list[GradientLayout]]:
    """The same parameters in one bucket, and in two: a matrix where there is room for one, and
    vectors."""
    shapes: dict[str, tuple[int, ...]] = {}
    rest = numel
    if numel >= MATRIX_NUMEL:
        side = isqrt(numel * 3 // 4)
        shapes["matrix"] = (side, side)
        rest -= side * side
    shapes["first"] = (max(1, rest // 2),)
    if rest > 1:
        shapes["second"] = (rest - rest // 2,)
    if len(shapes) == 1:
        return [GradientLayout.of(shapes)], [GradientLayout.of(shapes)]
    *others, last = shapes.items()
    return [GradientLayout.of(shapes)], [
        GradientLayout.of(dict(others)),
        GradientLayout.of(dict([last])),
    ]
