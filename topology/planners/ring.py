"""ring(order): the order of ranks whose ring puts the least load on its busiest link.

A pipelined ring is as fast as its slowest link, so the objective is the bottleneck (max-min),
not the sum of the edges as in the travelling-salesman formulations: a tour with the least sum
may hold a worse edge. Ties go to the lower latency, then to the order that sorts first. Where one
ring leaves links idle, further ones are laid over what is left, and share the bytes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, permutations

import numpy as np
from scipy.optimize import linprog

from trainmesh.topology.clusters import clustered_ranks, divisions
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.indexed import Indexed
from trainmesh.topology.request import PlanRequest
from trainmesh.topology.routes import Route
from trainmesh.types import Algorithm, Plan

__all__ = ["best_order", "plan", "why_not"]

EXACT_UP_TO = 8
"""Ranks of which all orders are tried: 5 040 rings."""
IMPROVE_UP_TO = 32
"""Above, improving a ring takes longer than a plan may."""
MAX_HOPS = 16_384
"""Of all rings of a plan together."""
MIN_SHARE = 1e-3
"""A ring with a smaller part of the bytes is not worth its latency."""
Order = tuple[int, ...]
_Cost = tuple[float, float, float, Order]


def why_not(graph: LinkGraph, request: PlanRequest) -> str | None:
    """Why there is no ring to choose; None if there is."""
    if graph.world_size < 3:
        return (
            f"it takes 3 ranks or more, not {graph.world_size}: with fewer there is one ring only, "
            "which native is"
        )
    return None


def plan(graph: LinkGraph, request: PlanRequest) -> Plan | None:
    """The best order, starting at rank 0, or several; None for fewer than three ranks (there is
    one ring only).

    One ring is exact up to 8 ranks. Above, near ranks are kept together, so that each uplink of
    a tree network is crossed once; improved by 2-opt up to 32 ranks, unless a rank's own links
    are the bottleneck already.
    """
    if why_not(graph, request) is not None:
        return None
    free = _Free(graph)
    first = best_order(graph)
    orders = [first]
    limit = min(request.executors.max_rings, MAX_HOPS // graph.world_size)
    if limit > 1:
        orders = _unique([first, *_rotated(graph)[:limit], *_over_the_rest(free, first, limit)])
    shares = _shares(orders, free)
    if len(orders) > 1 and free.rate(first) >= _rate(orders, shares, free) * (1 - MIN_SHARE):
        orders, shares = [first], [1.0]
    several = len(orders) > 1
    return Plan(
        algorithm=Algorithm.RING,
        world_size=graph.world_size,
        order=orders[0],
        rings=tuple(orders) if several else (),
        shares=tuple(shares) if several else (),
        collective=request.collective,
        nbytes=request.nbytes,
    )


def best_order(graph: LinkGraph) -> Order:
    """The order of the best single ring."""
    world_size = graph.world_size
    free = _Free(graph)
    if world_size <= EXACT_UP_TO:
        orders: Iterable[Order] = ((0, *rest) for rest in permutations(range(1, world_size)))
        return min(orders, key=free.cost)
    near = _from_rank_0(clustered_ranks(Indexed.of(graph)))
    best = min([tuple(range(world_size)), near], key=free.cost)
    if world_size <= IMPROVE_UP_TO and free.cost(best)[0] > _least(graph):
        best = _two_opt(best, free.cost)
    return best


class _Free:
    """The cost of rings on the free bandwidth, which is all of it at first.

    The same as ``cost.plan_cost`` up to a factor, but in a tenth of the time: thousands of orders
    are compared.
    """

    def __init__(self, graph: LinkGraph) -> None:
        self._graph = graph
        self.bandwidth = {link.name: link.cost.bandwidth_bytes_per_s for link in graph.links}

    def uses(self, order: Order) -> dict[str, float]:
        """How often each link is used for each byte that a hop sends."""
        uses: dict[str, float] = defaultdict(float)
        for route in self._hops(order):
            for name, part in route.parts:
                uses[name] += part
        return uses

    def cost(self, order: Order) -> _Cost:
        """Seconds per byte that each hop sends, on the bottleneck; the largest alpha of a hop; how
        many links are used, as what is left is for further rings."""
        uses: dict[str, float] = defaultdict(float)
        longest_s = 0.0
        for route in self._hops(order):
            longest_s = max(longest_s, route.alpha_s)
            for name, part in route.parts:
                uses[name] += part
        free = self.bandwidth
        slowest = max(
            part / free[name] if free[name] > 0 else math.inf for name, part in uses.items()
        )
        return float(slowest), longest_s, round(sum(uses.values()), 6), order

    def rate(self, order: Order) -> float:
        """Bytes/s that each hop can send."""
        return 1 / self.cost(order)[0]

    def take(self, order: Order, rate: float) -> None:
        """Let a ring run at ``rate`` for good."""
        for name, part in self.uses(order).items():
            left = self.bandwidth[name] - part * rate
            full = self._graph.link(name).cost.bandwidth_bytes_per_s
            self.bandwidth[name] = left if left > MIN_SHARE * full else 0.0

    def _hops(self, order: Order) -> Iterable[Route]:
        route = self._graph.route
        return (route(a, b) for a, b in pairwise((*order, order[0])))


def _rotated(graph: LinkGraph) -> list[Order]:
    """For equal islands: one ring for each place in an island, which leaves it by that place's
    links; every other island is walked through backwards, so that the place matches."""
    indexed = Indexed.of(graph)
    near = _from_rank_0(clustered_ranks(indexed))
    rank_of = {node: rank for rank, node in enumerate(indexed.ranks)}
    for groups in divisions(indexed):
        home = {
            rank_of[node]: i for i, group in enumerate(groups) for node in group & rank_of.keys()
        }
        islands: dict[int, list[int]] = defaultdict(list)
        for rank in near:
            islands[home[rank]].append(rank)
        sizes = Counter(map(len, islands.values()))
        if len(sizes) == 1 and 2 <= next(iter(sizes)) <= IMPROVE_UP_TO:
            size = next(iter(sizes))
            return [_through(list(islands.values()), place) for place in range(size)]
    return []


def _through(islands: Sequence[Sequence[int]], place: int) -> Order:
    order: list[int] = []
    for number, island in enumerate(islands):
        walk = [*island[place:], *island[:place]]
        order += reversed(walk) if number % 2 else walk
    return _from_rank_0(order)


def _over_the_rest(free: _Free, first: Order, limit: int) -> list[Order]:
    """Rings one after the other, each the best on the bandwidth that the previous ones left."""
    if len(first) > IMPROVE_UP_TO:
        return []
    orders = [first]
    fastest = free.rate(first)
    full = dict(free.bandwidth)
    while len(orders) < limit:
        free.take(orders[-1], free.rate(orders[-1]))
        order = _next_order(first, free)
        if free.cost(order)[0] * fastest * MIN_SHARE > 1:
            break
        orders.append(order)
    free.bandwidth = full
    return orders[1:]


def _next_order(first: Order, free: _Free) -> Order:
    if len(first) <= EXACT_UP_TO:
        return min(((0, *rest) for rest in permutations(range(1, len(first)))), key=free.cost)
    return _two_opt(first, free.cost)


def _shares(orders: Sequence[Order], free: _Free) -> list[float]:
    """The part of the bytes for each ring so that all together are as fast as can be: maximise
    the sum of rates on the links' bandwidth."""
    names = {name: row for row, name in enumerate(free.bandwidth)}
    loads = np.zeros((len(names), len(orders)))
    for column, order in enumerate(orders):
        for name, part in free.uses(order).items():
            loads[names[name], column] = part / free.bandwidth[name]
    used = loads[loads.any(axis=1)]
    scale = used.max()
    found = linprog(
        -np.ones(len(orders)), A_ub=used / scale, b_ub=np.ones(len(used)), method="highs"
    )
    return [float(rate) for rate in found.x / found.x.sum()]


def _rate(orders: list[Order], shares: list[float], free: _Free) -> float:
    """Bytes/s that each rank can send over all rings; drops those that carry next to nothing."""
    kept = [
        (order, share) for order, share in zip(orders, shares, strict=True) if share >= MIN_SHARE
    ]
    total = sum(share for _, share in kept)
    orders[:] = [order for order, _ in kept]
    shares[:] = [share / total for _, share in kept]
    loads: dict[str, float] = defaultdict(float)
    for order, share in zip(orders, shares, strict=True):
        for name, part in free.uses(order).items():
            loads[name] += share * part
    return 1 / max(load / free.bandwidth[name] for name, load in loads.items())


def _unique(orders: Iterable[Order]) -> list[Order]:
    return list(dict.fromkeys(orders))


def _from_rank_0(order: Sequence[int]) -> Order:
    start = order.index(0)
    return (*order[start:], *order[:start])


def _least(graph: LinkGraph) -> float:
    """A lower bound on the bottleneck of every order: each rank sends and receives over its own
    links."""
    out: dict[str, float] = defaultdict(float)
    into: dict[str, float] = defaultdict(float)
    for link in graph.links:
        bandwidth = link.cost.bandwidth_bytes_per_s
        out[link.src] = max(bandwidth, out[link.src])
        into[link.dst] = max(bandwidth, into[link.dst])
    names = map(graph.rank_node, range(graph.world_size))
    return 1 / min(min(out[name], into[name]) for name in names)


def _two_opt(order: Order, cost: Callable[[Order], _Cost]) -> Order:
    """Reverse segments of the ring while that helps, at most ``len(order)`` times (2-opt)."""
    for _ in order:
        size = len(order)
        candidates = [
            order[:i] + order[i:j][::-1] + order[j:]
            for i in range(1, size - 1)
            for j in range(i + 2, size + 1)
        ]
        best = min(candidates, key=cost)
        if cost(best)[:3] >= cost(order)[:3]:
            return order
        order = best
    return order
