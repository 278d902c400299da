"""Max-flows and min-cuts with whole-number capacities, exact whatever their size.

SciPy's Dinic (compiled, 32-bit) does the work; capacities are first clipped to what can reach
the sink at all, which changes no flow, and networkx with Python's integers takes over where even
that does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

__all__ = ["INT32_MAX", "Edge", "FlowNetwork", "MinCut"]

INT32_MAX = 2**31 - 1
"""SciPy's max-flow takes capacities of 32 bits."""
Edge = tuple[int, int, int]
"""Tail, head, capacity."""


class MinCut(NamedTuple):
    """A largest flow's value and the nodes on the source's side of the cut that limits it: those
    that the source still reaches, so the smallest such set."""

    value: int
    source_side: frozenset[int]


class FlowNetwork:
    """Nodes 0..size-1 and directed edges; parallel edges add up."""

    def __init__(self, size: int, edges: Sequence[Edge]) -> None:
        self.size = size
        total: dict[tuple[int, int], int] = {}
        for tail, head, capacity in edges:
            if capacity > 0 and tail != head:
                total[tail, head] = total.get((tail, head), 0) + capacity
        self._edges = total
        self._tails = np.fromiter((tail for tail, _ in total), np.int32, len(total))
        self._heads = np.fromiter((head for _, head in total), np.int32, len(total))
        self._out = [0] * size
        self._in = [0] * size
        for (tail, head), capacity in total.items():
            self._out[tail] += capacity
            self._in[head] += capacity

    def min_cut(self, source: int, sink: int) -> MinCut:
        """The largest flow from ``source`` to ``sink`` and its cut."""
        # One more than can flow: a clipped edge is never full, as the real one wouldn't be.
        limit = min(self._out[source], self._in[sink]) + 1
        if limit > INT32_MAX:
            return self._exact(source, sink)
        clipped = np.fromiter(
            (min(capacity, limit) for capacity in self._edges.values()), np.int32, len(self._edges)
        )
        shape = (self.size, self.size)
        capacities: Any = csr_array((clipped, (self._tails, self._heads)), shape=shape)
        found = maximum_flow(capacities, source, sink)
        residual = capacities - found.flow
        residual.eliminate_zeros()
        reached = breadth_first_order(residual, source, return_predecessors=False)
        return MinCut(int(found.flow_value), frozenset(map(int, reached)))

    def _exact(self, source: int, sink: int) -> MinCut:
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(self.size))
        for (tail, head), capacity in self._edges.items():
            graph.add_edge(tail, head, capacity=capacity)
        residual = nx.algorithms.flow.shortest_augmenting_path(graph, source, sink)
        open_edges: nx.DiGraph[int] = nx.DiGraph()
        open_edges.add_node(source)
        for tail, head, edge in residual.edges(data=True):
            if edge["flow"] < edge["capacity"]:
                open_edges.add_edge(tail, head)
        side = {source} | nx.descendants(open_edges, source)
        return MinCut(int(residual.graph["flow_value"]), frozenset(side))
