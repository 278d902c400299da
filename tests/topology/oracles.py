"""The optima again, straight from their definitions: slow, and with none of the planner's code.

Algbw in bytes/s throughout.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_array, coo_array, eye_array

from trainmesh.topology.graph import LinkGraph

__all__ = [
    "all_gather",
    "all_gather_over_cuts",
    "all_reduce",
    "all_reduce_over_cuts",
    "reduce_scatter",
]

Block = Any
"""A sparse matrix, or None for zeros."""


def all_gather_over_cuts(graph: LinkGraph) -> float:
    """What no set of nodes is too narrow for: N min B+(S) / |S n ranks|, over all sets."""
    ranks = _ranks(graph)
    return len(ranks) * min(_leaving(graph, s) / len(ranks & s) for s in _sides(graph))


def all_reduce_over_cuts(graph: LinkGraph) -> float:
    """The narrowest cut between ranks, or what all ranks can send or receive 2 (N - 1) times."""
    ranks = _ranks(graph)
    out = sum(li.cost.bandwidth_bytes_per_s for li in graph.links if li.src in ranks)
    into = sum(li.cost.bandwidth_bytes_per_s for li in graph.links if li.dst in ranks)
    cut = min(_leaving(graph, side) for side in _sides(graph))
    return min(cut, min(out, into) / (2 * len(ranks) - 2))


def all_gather(graph: LinkGraph) -> float:
    """The best all-gather of equal shards over switches that only forward."""
    return _optimum(graph, (1,), equal=True)


def reduce_scatter(graph: LinkGraph) -> float:
    """The best reduce-scatter into equal shards over switches that only forward."""
    return _optimum(graph, (-1,), equal=True)


def all_reduce(graph: LinkGraph) -> float:
    """The best all-reduce of reduction trees and broadcast trees over such switches."""
    return _optimum(graph, (1, -1), equal=False)


def _ranks(graph: LinkGraph) -> set[str]:
    return {graph.rank_node(rank) for rank in range(graph.world_size)}


def _sides(graph: LinkGraph) -> Iterator[frozenset[str]]:
    """All sets of nodes that hold some ranks but not all."""
    names, ranks = [node.name for node in graph.nodes], _ranks(graph)
    for size in range(1, len(names)):
        for side in map(frozenset, combinations(names, size)):
            if 0 < len(ranks & side) < len(ranks):
                yield side


def _leaving(graph: LinkGraph, side: frozenset[str]) -> float:
    return sum(
        link.cost.bandwidth_bytes_per_s
        for link in graph.links
        if link.src in side and link.dst not in side
    )


def _optimum(graph: LinkGraph, ways: Sequence[int], *, equal: bool) -> float:
    """A multi-commodity flow with copying (collectives.md 4.3): what is rooted at rank r, z_r,
    flows to every rank (way 1) or from every rank (way -1) inside capacities that those flows
    share, that switches hand on in full, and that fit on the links together. The largest sum of
    z, all of them ``equal`` or not."""
    names = [node.name for node in graph.nodes]
    ranks = [names.index(graph.rank_node(rank)) for rank in range(graph.world_size)]
    switches = np.setdiff1d(np.arange(len(names)), ranks)
    incidence = np.zeros((len(names), len(graph.links)))
    for column, link in enumerate(graph.links):
        incidence[names.index(link.src), column] -= 1
        incidence[names.index(link.dst), column] += 1
    # For each way a block for the capacity that it is given and one for each rank's flow; then z.
    each, one = 1 + len(ranks), eye_array(len(graph.links))
    last = len(ways) * each
    within: list[dict[int, Block]] = [dict.fromkeys(range(0, last, each), one)]
    equations: list[dict[int, Block]] = []
    for given, way in zip(range(0, last, each), ways, strict=True):
        if len(switches):
            equations.append({given: coo_array(incidence[switches])})
        for place, rank in enumerate(ranks, given + 1):
            rooted = np.zeros((len(names), len(ranks)))
            rooted[ranks, range(len(ranks))] = 1
            rooted[rank] -= 1
            equations.append({place: coo_array(incidence), last: coo_array(way * rooted)})
            within.append({place: one, given: -one})
    if equal:
        equations.append({last: eye_array(len(ranks) - 1, len(ranks), k=1) - _first(len(ranks))})
    widths = [len(graph.links)] * last + [len(ranks)]
    bandwidth = np.array([link.cost.bandwidth_bytes_per_s for link in graph.links])
    unit = bandwidth.max()
    upper, exact = _stacked(within, widths), _stacked(equations, widths)
    limits = np.zeros(upper.shape[0])
    limits[: len(bandwidth)] = bandwidth / unit
    found = linprog(
        [0.0] * (upper.shape[1] - len(ranks)) + [-1.0] * len(ranks),
        A_ub=upper,
        b_ub=limits,
        A_eq=exact,
        b_eq=np.zeros(exact.shape[0]),
    )
    assert found.status == 0, found.message
    return float(-found.fun * unit)


def _first(count: int) -> Block:
    """Rows that pick the first of ``count`` columns."""
    rows = np.arange(count - 1)
    return coo_array((np.ones(count - 1), (rows, np.zeros_like(rows))), (count - 1, count))


def _stacked(rows: Sequence[dict[int, Block]], widths: Sequence[int]) -> Block:
    """Rows of blocks (by column) below each other; what is not given is zero."""
    blocks = []
    for row in rows:
        height = next(iter(row.values())).shape[0]
        blocks.append([row.get(i, coo_array((height, width))) for i, width in enumerate(widths)])
    return block_array(blocks).tocsr()
