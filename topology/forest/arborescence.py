"""Cheapest spanning out-trees (Chu and Liu, Edmonds) on dense cost matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Costs", "parents"]

Costs = NDArray[np.float64]
Indices = NDArray[np.intp]


def parents(cost: Costs, root: int) -> Indices | None:
    """The parent of each node in a cheapest spanning tree out of ``root``; the root is its own.
    None if no tree spans the nodes.

    ``cost[u, v]`` of edge u -> v, infinite where there is none; the diagonal doesn't count.
    """
    size = len(cost)
    cost = cost.copy()
    cost[:, root] = np.inf
    np.fill_diagonal(cost, np.inf)
    best: Indices = cost.argmin(axis=0)
    least = cost[best, np.arange(size)]
    best[root], least[root] = root, 0
    if not np.isfinite(least).all():
        return None
    label = _circles(best, root)
    count = int(label.max()) + 1
    if count == size:
        return best
    # Inside a circle every node has its cheapest edge in; one of them must give way, at the
    # difference to the edge that comes in from outside.
    extra = cost - least
    groups = [np.flatnonzero(label == group) for group in range(count)]
    rows = np.array([extra[group].min(axis=0) for group in groups])
    joined = np.array([rows[:, group].min(axis=1) for group in groups]).T
    above = parents(joined, int(label[root]))
    if above is None:
        return None
    for group, parent in enumerate(above):
        if group != label[root]:
            block = extra[np.ix_(groups[parent], groups[group])]
            tail, head = np.unravel_index(int(block.argmin()), block.shape)
            best[groups[group][head]] = groups[parent][tail]
    return best


def _circles(parent: Indices, root: int) -> Indices:
    """Numbers for the nodes, the same for those of one circle of parents."""
    size = len(parent)
    label: Indices = np.full(size, -1)
    seen = np.full(size, -1)
    seen[root] = root
    circles = 0
    for start in range(size):
        node = start
        while seen[node] < 0:
            seen[node] = start
            node = int(parent[node])
        if seen[node] == start and node != root and label[node] < 0:
            while label[node] < 0:
                label[node] = circles
                node = int(parent[node])
            circles += 1
    alone = np.flatnonzero(label < 0)
    label[alone] = np.arange(circles, circles + len(alone))
    return label
