"""forest: the bytes are split over many trees, so that every limiting link is full.

All-gather and reduce-scatter: spanning trees packed at the rate of the tightest cut (ForestColl).
All-reduce: pairs of a reduction tree and a broadcast tree packed at the rate of the linear
programme over all such pairs. See ``trainmesh.topology.forest``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from trainmesh.errors import PlanError
from trainmesh.topology.bounds import algbw_limit
from trainmesh.topology.forest import OutTree, allgather_forest, allreduce_forest, reversed_hops
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.indexed import rational
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Algorithm, Collective, Plan, Tree

__all__ = ["plan", "why_not"]

MAX_RANKS = 64
"""Above, packing trees takes longer than a plan may."""
MAX_LINKS = 1_200
"""Packing takes about 10 s for 64 ranks and grows with the fourth power of their number."""
MAX_PAIRED = 32
"""Ranks up to which pairs of trees are packed for an all-reduce."""
GOOD = 0.995
"""Part of the bound that trees of an all-gather, run there and back, must reach to be taken where
pairs could be packed: as good where all ranks are alike, and found in a tenth of the time."""


def why_not(graph: LinkGraph, request: PlanRequest) -> str | None:
    """Why trees are not even tried to be packed; None if they are."""
    if graph.world_size < 2:
        return "one rank has nobody to send to"
    if graph.world_size > MAX_RANKS or len(graph.links) > MAX_LINKS:
        return (
            f"trees are packed for up to {MAX_RANKS} ranks and {MAX_LINKS} directed links, not for "
            f"{graph.world_size} and {len(graph.links)}"
        )
    if request.collective != Collective.ALLREDUCE and request.max_trees < graph.world_size:
        return f"{request.collective} takes a tree for each rank, more than {request.max_trees}"
    return None


def plan(graph: LinkGraph, request: PlanRequest) -> Plan | None:
    """The forest with at most ``request.max_trees`` trees; None for one rank, above 64 ranks, and
    where that many trees can't do (an all-gather needs one for each rank)."""
    if why_not(graph, request) is not None:
        return None
    try:
        trees = _trees(graph, request.collective, request.max_trees)
    except PlanError:
        return None
    return Plan(
        algorithm=Algorithm.FOREST,
        world_size=graph.world_size,
        order=tuple(range(graph.world_size)),
        collective=request.collective,
        trees=trees,
        nbytes=request.nbytes,
        num_chunks=0 if request.executors.pipelined else 1,
    )


@lru_cache(maxsize=4)
def _trees(graph: LinkGraph, collective: Collective, max_trees: int) -> tuple[Tree, ...]:
    ranks = [graph.rank_node(rank) for rank in range(graph.world_size)]
    capacities = {
        (link.src, link.dst): rational(link.cost.bandwidth_bytes_per_s) for link in graph.links
    }
    if collective != Collective.ALLREDUCE:
        return _one_way(graph, ranks, capacities, collective, max_trees).trees
    small = len(ranks) <= MAX_PAIRED
    there_and_back = _Found((), 0.0)
    if capacities == _opposite(capacities):
        limit = algbw_limit(graph, collective)
        possible = float(algbw_limit(graph, Collective.ALLGATHER) / 2 / limit)
        if not small or (possible >= GOOD and len(ranks) <= max_trees):
            there_and_back = _one_way(graph, ranks, capacities, collective, max_trees)
        there_and_back = there_and_back._replace(part=there_and_back.part * possible)
    elif not small:
        raise PlanError("a broadcast's trees can't be turned round on this graph")
    if there_and_back.part >= GOOD or not small:
        return there_and_back.trees
    pairs = _pairs(graph, ranks, capacities, max_trees)
    return max(pairs, there_and_back, key=lambda found: found.part).trees


_Capacities = dict[tuple[str, str], Fraction]


class _Found(NamedTuple):
    """``part`` of the bound that the trees reach."""

    trees: tuple[Tree, ...]
    part: float


def _one_way(
    graph: LinkGraph,
    ranks: Sequence[str],
    capacities: _Capacities,
    collective: Collective,
    max_trees: int,
) -> _Found:
    """The trees of an all-gather, which for an all-reduce are run there and back; ``part`` is
    theirs of the all-gather's bound."""
    scatter = collective == Collective.REDUCE_SCATTER
    bounded = Collective.REDUCE_SCATTER if scatter else Collective.ALLGATHER
    rate = algbw_limit(graph, bounded) / len(ranks)
    if scatter:
        capacities = _opposite(capacities)
    found = allgather_forest(ranks, capacities, rate, max_trees=max_trees)
    total = found.rate * len(ranks)
    trees = (
        _turned(tree, float(Fraction(tree.weight) / total), collective) for tree in found.trees
    )
    return _Found(tuple(trees), float(found.rate / rate))


def _pairs(
    graph: LinkGraph, ranks: Sequence[str], capacities: _Capacities, max_trees: int
) -> _Found:
    target = float(algbw_limit(graph, Collective.ALLREDUCE))
    pairs = allreduce_forest(ranks, capacities, target=target, max_trees=max_trees).pairs
    total = sum(float(pair.weight) for pair in pairs)
    trees = (Tree(pair.root, float(pair.weight) / total, pair.up, pair.down) for pair in pairs)
    return _Found(tuple(trees), total / target)


def _opposite(capacities: _Capacities) -> _Capacities:
    return {(dst, src): capacity for (src, dst), capacity in capacities.items()}


def _turned(tree: OutTree, share: float, collective: Collective) -> Tree:
    """The tree of a broadcast for what is asked: reductions run the same way back."""
    down, up = tree.hops, reversed_hops(tree.hops)
    return Tree(
        tree.root,
        share,
        () if collective == Collective.ALLGATHER else up,
        () if collective == Collective.REDUCE_SCATTER else down,
    )
