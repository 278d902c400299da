"""ring(order): the order of ranks whose ring loads its most loaded link least.

A pipelined ring is as fast as its slowest link, so the objective is the bottleneck (max-min),
not the sum of the edges as in the travelling-salesman formulations: a tour with the least sum
may hold a worse edge. Ties go to the lower latency, then to the order that sorts first.
"""

from __future__ import annotations

from itertools import combinations, permutations

from trainmesh.topology.cost import predict
from trainmesh.topology.graph import REFERENCE_BYTES, LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["plan"]

EXACT_UP_TO = 7
IMPROVE_UP_TO = 32
Order = tuple[int, ...]


def plan(graph: LinkGraph, nbytes: int) -> Plan | None:
    """The best order, starting at rank 0; None for fewer than three ranks (one ring only).

    Exact up to 7 ranks. Above, clusters of near ranks are joined end to end, the nearest first
    (single linkage), so that what shares a switch stays together and each uplink of a tree
    network is crossed once; improved by 2-opt up to 32 ranks.
    """
    world_size = graph.world_size
    if world_size < 3:
        return None
    in_rank_order = tuple(range(world_size))
    if world_size <= EXACT_UP_TO:
        orders = [(0, *rest) for rest in permutations(range(1, world_size))]
    else:
        orders = [in_rank_order, _clustered_order(graph)]
    best = min(orders, key=lambda order: _cost(order, graph))
    if EXACT_UP_TO < world_size <= IMPROVE_UP_TO:
        best = _two_opt(best, graph)
    return _as_plan(best, nbytes)


def _as_plan(order: Order, nbytes: int) -> Plan:
    return Plan(algorithm=Algorithm.RING, world_size=len(order), order=order, nbytes=nbytes)


def _cost(order: Order, graph: LinkGraph) -> tuple[float, float, Order]:
    [stage] = predict(_as_plan(order, 1), graph, 1).stages
    # Rounded, so that equal loads added up in another order still tie.
    return float(f"{stage.transfer_s(1):.9e}"), float(f"{stage.latency_s:.9e}"), order


def _clustered_order(graph: LinkGraph) -> Order:
    pairs = sorted(
        (sum(link.cost.time_s(REFERENCE_BYTES) for link in graph.path(a, b)), a, b)
        for a, b in combinations(range(graph.world_size), 2)
    )
    cluster = {rank: [rank] for rank in range(graph.world_size)}
    for _, a, b in pairs:
        if cluster[a] is not cluster[b]:
            joined = cluster[a] + cluster[b]
            cluster.update(dict.fromkeys(joined, joined))
    start = cluster[0].index(0)
    return tuple(cluster[0][start:] + cluster[0][:start])


def _two_opt(order: Order, graph: LinkGraph) -> Order:
    """Reverse stretches of the ring while that helps; at most ``len(order)`` times."""
    for _ in order:
        size = len(order)
        candidates = [
            order[:i] + order[i:j][::-1] + order[j:]
            for i in range(1, size - 1)
            for j in range(i + 2, size + 1)
        ]
        best = min(candidates, key=lambda other: _cost(other, graph))
        if _cost(best, graph)[:2] >= _cost(order, graph)[:2]:
            return order
        order = best
    return order
