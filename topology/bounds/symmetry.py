"""Nodes that look alike, so that a large cluster is planned as a small one.

Colour refinement: nodes of one colour have, for every colour and capacity, the same number of
links to and from it. A flow between two nodes of their own colour is then the same on the graph
of colours, whose links add up those of the nodes: spread a flow of the colours evenly, or add up
a flow of the nodes (Grohe, Kersting, Mladenov and Selman, Dimension reduction via colour
refinement, ESA 2014).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainmesh.topology.flow import Edge
from trainmesh.topology.indexed import Indexed

__all__ = ["Colouring"]

Colours = NDArray[np.int64]
ODD = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio, odd: multiplication by it mixes the bits (Knuth 6.4)."""


class Colouring:
    """The coarsest equal-looking division of a graph's nodes, and finer ones from it."""

    def __init__(self, graph: Indexed) -> None:
        self._graph = graph
        self._tails = np.array([edge[0] for edge in graph.edges], np.int64)
        self._heads = np.array([edge[1] for edge in graph.edges], np.int64)
        sizes = np.array([edge[2] for edge in graph.edges], object)
        self._sizes = np.unique(sizes, return_inverse=True)[1].astype(np.uint64)
        start = np.zeros(graph.size, np.int64)
        start[list(graph.ranks)] = 1
        self.colours = self._refined(start)

    def singled_out(self, nodes: Sequence[int]) -> Colours:
        """The colours once each of ``nodes`` has one of its own."""
        start = self.colours.copy()
        for place, node in enumerate(nodes):
            start[node] = self.colours.max() + 1 + place
        return self._refined(start)

    def representatives(self) -> list[int]:
        """The first rank of each colour."""
        first: dict[int, int] = {}
        for node in self._graph.ranks:
            first.setdefault(int(self.colours[node]), node)
        return list(first.values())

    def quotient(self, colours: Colours) -> tuple[int, list[Edge]]:
        """The graph of ``colours``: number of nodes, and edges with the capacities added up."""
        total: dict[tuple[int, int], int] = {}
        ends = zip(colours[self._tails], colours[self._heads], self._graph.edges, strict=True)
        for tail, head, (_, _, capacity) in ends:
            if tail != head:
                key = (int(tail), int(head))
                total[key] = total.get(key, 0) + capacity
        edges = [(tail, head, capacity) for (tail, head), capacity in total.items()]
        return int(colours.max()) + 1, edges

    def _refined(self, colours: Colours) -> Colours:
        """Split colours until nodes of one colour have the same neighbours. Neighbourhoods are
        compared by a 64-bit sum; two that collide would stay one colour, which makes the graph of
        colours coarser: its flows are never too small."""
        colours = np.unique(colours, return_inverse=True)[1].astype(np.int64)
        while True:
            seen = np.zeros(len(colours), np.uint64)
            np.add.at(seen, self._tails, self._mixed(colours[self._heads], 1))
            np.add.at(seen, self._heads, self._mixed(colours[self._tails], 2))
            pairs = np.stack([colours.astype(np.uint64), seen], axis=1)
            finer = np.unique(pairs, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
            if finer.max() == colours.max():
                return finer
            colours = finer

    def _mixed(self, colours: Colours, direction: int) -> NDArray[np.uint64]:
        value = colours.astype(np.uint64) * np.uint64(4) + np.uint64(direction)
        value = (value ^ (self._sizes << np.uint64(40))) * ODD
        value ^= value >> np.uint64(29)
        value *= np.uint64(0xBF58476D1CE4E5B9)
        value ^= value >> np.uint64(32)
        return value * ODD
