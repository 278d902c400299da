"""Whole-number capacities with a source that feeds the ranks, as a matrix: what splitting and
packing work on.

Nodes 0..ranks-1 are ranks, then come the switches; the last one is the source. ``demand`` is what
the source feeds in all. The trees that are wanted exist if a flow of ``demand`` reaches every rank
(Edmonds; with several roots Frank) and switches are balanced: as much capacity in as out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

__all__ = ["Matrix", "Rooted", "Shortage", "flow", "shortage"]

Matrix = NDArray[np.int64]


class Rooted(NamedTuple):
    """``capacity[u, v]`` of link u -> v; the last row holds what the source feeds each rank."""

    ranks: int
    capacity: Matrix

    @property
    def source(self) -> int:
        return len(self.capacity) - 1

    @property
    def demand(self) -> int:
        return int(self.capacity[self.source].sum())

    def switches(self) -> range:
        return range(self.ranks, self.source)


class Shortage(NamedTuple):
    """A set of nodes that too little reaches: ``inside[v]`` for node v; the source is outside."""

    missing: int
    inside: NDArray[np.bool_]


def flow(capacity: Matrix, source: int, sink: int, enough: int) -> int:
    """The largest flow from ``source`` to ``sink``, or ``enough`` if more is possible.

    ``enough`` times the number of nodes must stay below ``trainmesh.topology.flow.INT32_MAX``:
    SciPy's Dinic counts no further.
    """
    return min(enough, int(_maximum_flow(capacity, source, sink, enough).flow_value))


def shortage(rooted: Rooted, rank: int) -> Shortage | None:
    """The set that keeps ``demand`` from reaching ``rank``; None if it does."""
    demand = rooted.demand
    found = _maximum_flow(rooted.capacity, rooted.source, rank, demand)
    if found.flow_value >= demand:
        return None
    residual = csr_array(np.minimum(rooted.capacity, demand).astype(np.int32)) - found.flow
    residual.eliminate_zeros()
    inside = np.ones(len(rooted.capacity), dtype=bool)
    inside[breadth_first_order(residual, rooted.source, return_predecessors=False)] = False
    return Shortage(demand - int(found.flow_value), inside)


def _maximum_flow(capacity: Matrix, source: int, sink: int, enough: int) -> Any:
    clipped = csr_array(np.minimum(capacity, enough).astype(np.int32))
    return maximum_flow(clipped, source, sink)
