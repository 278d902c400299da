"""At which sizes another algorithm becomes the fastest."""

from __future__ import annotations

from collections.abc import Mapping

from trainmesh.topology.cost import PlanCost
from trainmesh.types import Crossover

__all__ = ["SMALLEST_BYTES", "crossovers"]

SMALLEST_BYTES = 1024
"""Below, latency is all there is."""
LARGEST_BYTES = 2**34
"""16 GiB: beyond the gradients of one bucket."""
STEPS_AN_OCTAVE = 2
"""Sizes to look at between one and its double; the crossover itself is found exactly."""
NEARLY = 1 - 1e-6
"""A time that is less by this factor only is the same."""


def crossovers(costs: Mapping[str, PlanCost]) -> tuple[Crossover, ...]:
    """Where the fastest of ``costs`` (by algorithm, the simplest first) changes between 1 KiB and
    16 GiB, to the byte. Two changes within a factor of 1.4 are not told apart."""
    sizes = [SMALLEST_BYTES]
    while sizes[-1] < LARGEST_BYTES:
        sizes.append(int(sizes[-1] * 2 ** (1 / STEPS_AN_OCTAVE)) + 1)
    found: list[Crossover] = []
    before = _fastest(costs, sizes[0])
    for low, high in zip(sizes, sizes[1:], strict=False):
        after = _fastest(costs, high)
        if after != before:
            found.append(Crossover(_first(costs, before, after, low, high), before, after))
            before = after
    return tuple(found)


def _fastest(costs: Mapping[str, PlanCost], nbytes: int) -> str:
    best, least_s = "", float("inf")
    for name, cost in costs.items():
        time_s = cost.predict(nbytes).time_s
        if time_s < least_s * NEARLY:
            best, least_s = name, time_s
    return best


def _first(costs: Mapping[str, PlanCost], before: str, after: str, low: int, high: int) -> int:
    """The least size in (low, high] from which ``after`` is faster than ``before``."""
    while high - low > 1:
        middle = (low + high) // 2
        later_s = costs[after].predict(middle).time_s
        if later_s < costs[before].predict(middle).time_s * NEARLY:
            high = middle
        else:
            low = middle
    return high
