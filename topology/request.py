"""What is asked of the planners."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Algorithm, Collective, Plan

__all__ = ["ANY", "LIVE", "NCCL", "ONE_RING", "Executors", "Planner", "PlanRequest"]


@dataclass(frozen=True)
class Executors:
    """The abilities of the executors that will carry a plan out: the built-in algorithms, whether
    they cut the bytes into chunks so that stages overlap, how many rings and nested levels of
    islands they run, whether the places of an island may have unequal shares, and the cost of a
    message beside that of the links. ``native_is_ring``: whether the backend's own collective is
    one ring in rank order, as native is predicted; if not, no plan may be compared with native."""

    algorithms: Collection[str]
    pipelined: bool
    max_rings: int
    max_levels: int
    unequal_places: bool
    message_s: float = 0.0
    native_is_ring: bool = True


ANY = Executors(
    frozenset(Algorithm), pipelined=True, max_rings=16, max_levels=8, unequal_places=True
)
"""What the algorithms are capable of."""
LIVE = replace(ANY, message_s=100e-6)
"""The executors in ``trainmesh.hooks`` on gloo groups (benchmarks/executors.py). Gloo reduces every
size in one ring in rank order (``gloo/allreduce.cc``: the algorithm is never specified)."""
NCCL = replace(ANY, message_s=50e-6, native_is_ring=False)
"""Those on NCCL groups, by groups of sends and receives; not measured on GPUs. NCCL picks among
rings of its own order, trees and NVLS (``topology.nccl``)."""
ONE_RING = replace(NCCL, algorithms=frozenset({Algorithm.NATIVE, Algorithm.RING}), max_rings=1)
"""The plans that NCCL itself carries out: its own choice, and the same with the ranks in another
order."""


@dataclass(frozen=True)
class PlanRequest:
    """``nbytes``: as in ``Collective``. ``max_trees``: the most trees that a forest may have, as
    each is a schedule of its own; fewer cost some of its speed."""

    nbytes: int
    collective: Collective = Collective.ALLREDUCE
    executors: Executors = ANY
    max_trees: int = 64


class Planner(Protocol):
    """Makes one plan for ``request`` on ``graph``; None where it doesn't apply.

    Pure. A planner of a third party sets ``predicted_s`` itself; for the built-in algorithms it
    is computed from the plan's messages. One that fails, or whose plan is malformed, is left out
    with a warning among the words of the choice.
    """

    def __call__(self, graph: LinkGraph, request: PlanRequest) -> Plan | None: ...
