"""Spanning out-trees packed into links between ranks (Berczi and Frank; Tarjan).

A tree that stands for m equal ones grows link by link. Every set X of ranks must keep as much
capacity in as there are trees that still have to reach it; what a link x -> y can give to a tree is
the slack of the sets that hold y but not x, a min-cut in which every other unfinished tree is a
node that x feeds and that feeds its members. Where the slack is less than m, the tree is divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trainmesh.errors import PlanError
from trainmesh.topology.forest.rooted import Matrix, flow
from trainmesh.topology.forest.splitting import Ways

__all__ = ["Branch", "Packed", "packed"]


class Branch(NamedTuple):
    """A link of a tree with its way."""

    src: int
    dst: int
    via: tuple[int, ...]


@dataclass(eq=False)
class Packed:
    """``count`` equal trees; ``members`` in the order in which the broadcast reaches them."""

    count: int
    members: list[int]
    branches: list[Branch] = field(default_factory=list)


class _Link(NamedTuple):
    tail: int
    head: int
    via: tuple[int, ...]
    amount: int


def packed(amounts: Sequence[int], ways: Ways) -> list[Packed]:
    """For each rank r ``amounts[r]`` spanning trees with root r.

    Raises:
        PlanError: ``ways`` don't hold them.
    """
    packing = _Packing(amounts, ways)
    return [tree for root in range(len(amounts)) for tree in packing.grow(root)]


class _Packing:
    """``waiting``: the trees that are not complete, by root and, of one root, the last first."""

    def __init__(self, amounts: Sequence[int], ways: Ways) -> None:
        self.size = len(amounts)
        self.ways: Ways = {ends: dict(by_way) for ends, by_way in ways.items()}
        self.capacity: Matrix = np.zeros((self.size, self.size), np.int64)
        for ends, by_way in ways.items():
            self.capacity[ends] = sum(by_way.values())
        self.waiting = [Packed(amount, [root]) for root, amount in enumerate(amounts) if amount]

    def grow(self, root: int) -> Iterator[Packed]:
        """Complete the trees of ``root``."""
        while mine := [tree for tree in self.waiting if tree.members[0] == root]:
            tree = mine[-1]
            while len(tree.members) < self.size:
                self._extend(tree)
            self.waiting.remove(tree)
            yield tree

    def _extend(self, tree: Packed) -> None:
        """Add the link that gives most to ``tree``, the shallowest of those; divide the tree if
        that is not enough for all of it."""
        demands = self._demands(tree)
        best, most = None, 0
        for link in self._candidates(tree):
            wanted = min(link.amount, tree.count)
            if wanted > most:
                given = self._slack(demands, link, wanted)
                if given > most:
                    best, most = link, given
            if most == tree.count:
                break
        if best is None:
            raise PlanError("the links don't hold the trees")
        self._take(tree, best, most)

    def _take(self, tree: Packed, link: _Link, amount: int) -> None:
        if amount < tree.count:
            rest = Packed(tree.count - amount, list(tree.members), list(tree.branches))
            self.waiting.insert(self.waiting.index(tree), rest)
            tree.count = amount
        ends = link.tail, link.head
        tree.members.append(link.head)
        tree.branches.append(Branch(*ends, link.via))
        self.capacity[ends] -= amount
        ways = self.ways[ends]
        ways[link.via] -= amount
        if not ways[link.via]:
            del ways[link.via]

    def _candidates(self, tree: Packed) -> list[_Link]:
        """Links out of the tree: those that can serve all of it first, then those that start
        nearest to the root, then the widest."""
        outside = set(range(self.size)) - set(tree.members)
        links = [
            _Link(tail, head, via, amount)
            for tail in tree.members
            for head in outside
            for via, amount in self.ways.get((tail, head), {}).items()
        ]
        depth = _depths(tree)
        return sorted(
            links,
            key=lambda li: (li.amount < tree.count, depth[li.tail], -li.amount, li),
        )

    def _demands(self, tree: Packed) -> list[tuple[int, list[int]]]:
        """How many of the other trees have which members."""
        total: dict[tuple[int, ...], int] = {}
        for other in self.waiting:
            if other is not tree:
                members = tuple(sorted(other.members))
                total[members] = total.get(members, 0) + other.count
        return [(count, list(members)) for members, count in total.items()]

    def _slack(self, demands: list[tuple[int, list[int]]], link: _Link, wanted: int) -> int:
        """How much of ``wanted`` the sets with the head of ``link``, but not its tail, can lose."""
        owed = sum(count for count, _ in demands)
        enough = owed + wanted
        several = [demand for demand in demands if len(demand[1]) > 1]
        graph = np.zeros((self.size + len(several),) * 2, np.int64)
        graph[: self.size, : self.size] = self.capacity
        for count, members in demands:
            if len(members) == 1:
                graph[link.tail, members[0]] += count
        for node, (count, members) in enumerate(several, start=self.size):
            graph[link.tail, node] = count
            graph[node, members] = enough
        graph[link.tail, link.tail] = 0
        return max(0, flow(graph, link.tail, link.head, enough) - owed)


def _depths(tree: Packed) -> dict[int, int]:
    depth = {tree.members[0]: 0}
    for branch in tree.branches:
        depth[branch.dst] = depth[branch.src] + 1
    return depth
