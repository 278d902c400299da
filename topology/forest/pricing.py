"""The cheapest trees when every link has a price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmesh.topology.forest.arborescence import Costs, parents
from trainmesh.topology.forest.fabric import Fabric

__all__ = ["Edge", "Pricing", "PricedTree"]


class Edge(NamedTuple):
    """From rank to rank over switches."""

    src: int
    dst: int
    via: tuple[int, ...]


class PricedTree(NamedTuple):
    """Edges in broadcast order from ``root``, which for a reduction is the order of the reversed
    edges backwards; ``load`` is how often it uses each arc."""

    root: int
    edges: tuple[Edge, ...]
    load: NDArray[np.float64]


class Pricing:
    """Cheapest ways over switches, and with them cheapest trees, at given prices of the arcs."""

    def __init__(self, fabric: Fabric, prices: NDArray[np.float64]) -> None:
        self._fabric = fabric
        self._arc = {arc: index for index, arc in enumerate(fabric.arcs)}
        distance = np.full((fabric.size, fabric.size), np.inf)
        for arc, price in zip(fabric.arcs, prices, strict=True):
            distance[arc] = price
        self._through = np.full(distance.shape, -1)
        for switch in range(fabric.ranks, fabric.size):
            over = distance[:, switch, None] + distance[switch]
            shorter = over < distance
            distance[shorter] = over[shorter]
            self._through[shorter] = switch
        self.costs: Costs = distance[: fabric.ranks, : fabric.ranks]
        np.fill_diagonal(self.costs, np.inf)

    def cheapest(self, root: int, *, inwards: bool = False) -> tuple[PricedTree, float] | None:
        """The tree and what it costs; None if none spans the ranks."""
        costs = self.costs.T if inwards else self.costs
        parent = parents(costs, root)
        if parent is None:
            return None
        links = [(int(parent[v]), v) for v in range(len(parent)) if v != root]
        ordered = _from_root(root, links)
        ends = [(v, u) for u, v in reversed(ordered)] if inwards else ordered
        return self._tree(root, ends), float(sum(costs[link] for link in links))

    def _tree(self, root: int, ends: Sequence[tuple[int, int]]) -> PricedTree:
        edges = tuple(Edge(u, v, self._via(u, v)) for u, v in ends)
        return PricedTree(root, edges, _load(self._arc, edges))

    def _via(self, u: int, v: int) -> tuple[int, ...]:
        switch = int(self._through[u, v])
        if switch < 0:
            return ()
        return (*self._via(u, switch), switch, *self._via(switch, v))


def _load(arcs: dict[tuple[int, int], int], edges: Sequence[Edge]) -> NDArray[np.float64]:
    """How often each arc is used."""
    load = np.zeros(len(arcs))
    for src, dst, via in edges:
        nodes = (src, *via, dst)
        for arc in zip(nodes, nodes[1:], strict=False):
            load[arcs[arc]] += 1
    return load


def _from_root(root: int, links: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Breadth first."""
    children: dict[int, list[int]] = {}
    for u, v in links:
        children.setdefault(u, []).append(v)
    ordered: list[tuple[int, int]] = []
    queue = [root]
    for u in queue:
        for v in children.get(u, []):
            ordered.append((u, v))
            queue.append(v)
    return ordered
