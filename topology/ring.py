"""ring(order): the order of ranks whose ring loads its most loaded link least.

A pipelined ring is as fast as its slowest link, so the objective is the bottleneck (max-min),
not the sum of the edges as in the travelling-salesman formulations: a tour with the least sum
may hold a worse edge. Ties go to the lower latency, then to the order that sorts first.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations, starmap

from trainmesh.topology.graph import REFERENCE_BYTES, LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["plan"]

EXACT_UP_TO = 8
IMPROVE_UP_TO = 32
Order = tuple[int, ...]


def plan(graph: LinkGraph, nbytes: int) -> Plan | None:
    """The best order, starting at rank 0; None for fewer than three ranks (one ring only).

    Exact up to 8 ranks. Above, clusters of near ranks are joined end to end, the nearest first
    (single linkage), so that what shares a switch stays together and each uplink of a tree
    network is crossed once; improved by 2-opt up to 32 ranks, unless a rank's own links are the
    bottleneck already.
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
    if EXACT_UP_TO < world_size <= IMPROVE_UP_TO and _cost(best, graph)[0] > _least(graph):
        best = _two_opt(best, graph)
    return _as_plan(best, nbytes)


def _as_plan(order: Order, nbytes: int) -> Plan:
    return Plan(algorithm=Algorithm.RING, world_size=len(order), order=order, nbytes=nbytes)


def _cost(order: Order, graph: LinkGraph) -> tuple[float, float, Order]:
    """Seconds per byte that each hop sends, on the bottleneck; the largest alpha of a hop.

    The same as ``cost.predict`` up to a factor, but in a tenth of the time: thousands of orders
    are compared.
    """
    paths = list(starmap(graph.path, zip(order, (*order[1:], order[0]), strict=True)))
    uses = Counter(link for path in paths for link in path)
    bottleneck = max(n / link.cost.bandwidth_bytes_per_s for link, n in uses.items())
    return bottleneck, max(sum(link.cost.alpha_s for link in path) for path in paths), order


def _least(graph: LinkGraph) -> float:
    """What no order's bottleneck is below: each rank sends and receives over a link of its own."""
    fastest_out: dict[str, float] = {}
    fastest_in: dict[str, float] = {}
    for link in graph.links:
        bandwidth = link.cost.bandwidth_bytes_per_s
        fastest_out[link.src] = max(bandwidth, fastest_out.get(link.src, 0.0))
        fastest_in[link.dst] = max(bandwidth, fastest_in.get(link.dst, 0.0))
    names = map(graph.rank_node, range(graph.world_size))
    return 1 / min(min(fastest_out[name], fastest_in[name]) for name in names)


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
