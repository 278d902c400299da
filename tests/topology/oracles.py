"""The optima again, straight from their definitions: slow, and none of the planner's own code."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_array, coo_array, eye_array

from trainmesh.topology.graph import LinkGraph

__all__ = ["all_gather", "all_gather_over_cuts", "all_reduce", "all_reduce_over_cuts"]


def all_gather_over_cuts(graph: LinkGraph) -> float:
    """Algbw (bytes/s) that no set of nodes is too narrow for: N min B+(S) / |S n ranks|."""
    ranks, sides = _sides(graph)
    return len(ranks) * min(_leaving(graph, side) / len(ranks & side) for side in sides)


def all_reduce_over_cuts(graph: LinkGraph) -> float:
    """The capacity of the narrowest cut between ranks, or what the ranks can send or receive
    2 (N - 1) times."""
    ranks, sides = _sides(graph)
    cut = min(_leaving(graph, side) for side in sides)
    out = sum(li.cost.bandwidth_bytes_per_s for li in graph.links if li.src in ranks)
    into = sum(li.cost.bandwidth_bytes_per_s for li in graph.links if li.dst in ranks)
    return min(cut, min(out, into) / (2 * len(ranks) - 2))


def all_gather(graph: LinkGraph) -> float:
    """Algbw of the best all-gather of equal shards over switches that only forward."""
    return _Programme(graph, (1,), equal=True).optimum()


def reduce_scatter(graph: LinkGraph) -> float:
    """Algbw of the best reduce-scatter into equal shards over switches that only forward."""
    return _Programme(graph, (-1,), equal=True).optimum()


def all_reduce(graph: LinkGraph) -> float:
    """Algbw of the best all-reduce over reduction trees and broadcast trees."""
    return _Programme(graph, (1, -1), equal=False).optimum()


def _sides(graph: LinkGraph) -> tuple[set[str], list[frozenset[str]]]:
    """The ranks, and all sets of nodes that hold some of them but not all."""
    names = [node.name for node in graph.nodes]
    ranks = {graph.rank_node(rank) for rank in range(graph.world_size)}
    every = (frozenset(c) for size in range(1, len(names)) for c in combinations(names, size))
    return ranks, [side for side in every if 0 < len(ranks & side) < len(ranks)]


def _leaving(graph: LinkGraph, side: frozenset[str]) -> float:
    return sum(
        link.cost.bandwidth_bytes_per_s
        for link in graph.links
        if link.src in side and link.dst not in side
    )


class _Programme:
    """A multi-commodity flow with copying: what is rooted at rank r, z_r, flows to every rank
    (way 1) or from every rank (way -1) inside capacities that all these flows share, that switches
    hand on in full, and that fit on the links together. Maximises the sum of z."""

    def __init__(self, graph: LinkGraph, ways: Sequence[int], *, equal: bool) -> None:
        names = [node.name for node in graph.nodes]
        self.ranks = [names.index(graph.rank_node(rank)) for rank in range(graph.world_size)]
        self.size, self.width = len(names), len(graph.links)
        self.ways, self.equal = ways, equal
        bandwidth = np.array([link.cost.bandwidth_bytes_per_s for link in graph.links])
        self.unit = bandwidth.max()
        self.bandwidth = bandwidth / self.unit
        columns = range(self.width)
        tails = coo_array(
            (-np.ones(self.width), ([names.index(li.src) for li in graph.links], columns)),
            shape=(self.size, self.width),
        )
        heads = coo_array(
            (np.ones(self.width), ([names.index(li.dst) for li in graph.links], columns)),
            shape=(self.size, self.width),
        )
        self.incidence = (tails + heads).tocsr()

    def optimum(self) -> float:
        """In bytes/s."""
        count, width = len(self.ranks), self.width
        one = eye_array(width)
        # A block for each way: the capacity that it is given, and then a flow for each rank.
        blocks = len(self.ways) * (1 + count)
        forwards = np.setdiff1d(np.arange(self.size), self.ranks)
        below: list[list[object]] = []
        exactly: list[list[object]] = []
        for number, way in enumerate(self.ways):
            given = number * (1 + count)
            row: list[object] = [None] * (blocks + 1)
            row[given] = self.incidence[forwards]
            exactly.append(row)
            for place, rank in enumerate(self.ranks):
                row = [None] * (blocks + 1)
                row[given + 1 + place], row[given] = one, -one
                below.append(row)
                row = [None] * (blocks + 1)
                row[given + 1 + place] = self.incidence
                row[-1] = way * self._rooted(rank)
                exactly.append(row)
        total: list[object] = [None] * (blocks + 1)
        for number in range(len(self.ways)):
            total[number * (1 + count)] = one
        below.append(total)
        if self.equal:
            row = [None] * (blocks + 1)
            row[-1] = eye_array(count - 1, count) - eye_array(count - 1, count, k=1)
            exactly.append(row)
        upper = self._stacked(below, blocks)
        equations = self._stacked(exactly, blocks)
        objective = np.zeros(upper.shape[1])
        objective[-count:] = -1
        limits = np.concatenate([np.zeros(upper.shape[0] - width), self.bandwidth])
        found = linprog(
            objective,
            A_ub=upper,
            b_ub=limits,
            A_eq=equations,
            b_eq=np.zeros(equations.shape[0]),
            method="highs",
        )
        assert found.status == 0, found.message
        return float(-found.fun * self.unit)

    def _rooted(self, rank: int) -> coo_array:
        """What the flow of ``rank`` adds at each node, by z: z at its own node, and there all of it
        is taken out."""
        found = np.zeros((self.size, len(self.ranks)))
        for place, node in enumerate(self.ranks):
            found[node, place] += 1
            found[rank, place] -= 1
        return coo_array(found)

    def _stacked(self, rows: list[list[object]], blocks: int) -> object:
        widths = [self.width] * blocks + [len(self.ranks)]
        for row in rows:
            height = next(part.shape[0] for part in row if part is not None)
            for place, part in enumerate(row):
                if part is None:
                    row[place] = coo_array((height, widths[place]))
        return block_array([row for row in rows if row[0].shape[0]]).tocsr()
