"""The two cuts that limit collectives, exact in rational arithmetic.

All-gather: everything outside a set S of nodes needs the |S n ranks| shards of M / N bytes that
are inside, so ``T >= (M / N) |S n ranks| / B+(S)``; no schedule needs more than the largest of
these where switches have as much capacity in as out (ForestColl, arXiv 2402.06787). The least
``x = B+(S) / |S n ranks|`` is found by discrete Newton (Dinkelbach): x is right if from a source
that feeds x into every rank a flow of N x reaches each rank; if not, the min-cut is a set with a
smaller ratio. A reduce-scatter is an all-gather on the reversed graph.

All-reduce: M bytes leave any set that separates ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from trainmesh.topology.bounds.symmetry import Colouring
from trainmesh.topology.flow import Edge, FlowNetwork
from trainmesh.topology.indexed import Indexed

__all__ = ["Cut", "broadcast_cut", "separating_cut"]

EXACT_WORK = 400_000
"""Ranks times links up to which a flow to every rank is computed; above, to one rank of each
colour, on the graph of colours."""


class Cut(NamedTuple):
    """``value`` in the graph's units: capacity a rank, or the capacity. ``side`` are the nodes on
    the sending side; ``exact``: no cut can be smaller."""

    value: Fraction
    side: frozenset[int]
    exact: bool


def broadcast_cut(graph: Indexed) -> Cut:
    """The set with the least capacity out for each rank in it; at least two ranks."""
    count = len(graph.ranks)
    best = _narrowest_rank(graph, Fraction(1, count - 1))
    if count * len(graph.edges) <= EXACT_WORK:
        reached: set[int] = set()
        links = _wide(graph)
        for node in graph.ranks:
            if node not in reached:
                best = _newton(graph, best, node)
                reached.add(node)
            _spread(links, reached, best.value * count)
        return best
    colouring = Colouring(graph)
    for node in colouring.representatives():
        best = _newton_on_colours(graph, colouring, best, node)
    return best._replace(exact=False)


def separating_cut(graph: Indexed) -> Cut:
    """The set with some ranks in it and some not with the least capacity out."""
    best = min(
        _narrowest_rank(graph, Fraction(1)),
        _complement(graph, _narrowest_rank(graph.reversed(), Fraction(1))),
        key=lambda cut: cut.value,
    )
    best = _from_rank_0(graph, best)
    other = _from_rank_0(graph.reversed(), _complement(graph, best))
    return _complement(graph, other)


def _complement(graph: Indexed, cut: Cut) -> Cut:
    """The same cut seen on the reversed graph."""
    return cut._replace(side=frozenset(range(graph.size)) - cut.side)


def _narrowest_rank(graph: Indexed, factor: Fraction) -> Cut:
    """All but the rank with the least capacity in, times ``factor``."""
    into = [0] * graph.size
    for _, head, capacity in graph.edges:
        into[head] += capacity
    worst = min(graph.ranks, key=lambda node: into[node])
    return Cut(into[worst] * factor, frozenset(range(graph.size)) - {worst}, exact=True)


def _newton(graph: Indexed, best: Cut, sink: int) -> Cut:
    """``best``, or the best of the sets without ``sink`` if that is smaller."""
    source, count = graph.size, len(graph.ranks)
    while True:
        x = best.value
        edges = [(tail, head, capacity * x.denominator) for tail, head, capacity in graph.edges]
        edges += [(source, node, x.numerator) for node in graph.ranks]
        flow, side = FlowNetwork(graph.size + 1, edges).min_cut(source, sink)
        if flow >= count * x.numerator:
            return best
        side -= {source}
        ranks_inside = sum(node in side for node in graph.ranks)
        best = Cut(Fraction(graph.leaving(side), ranks_inside), side, exact=True)


def _newton_on_colours(graph: Indexed, colouring: Colouring, best: Cut, sink: int) -> Cut:
    colours = colouring.singled_out([sink])
    size, links = colouring.quotient(colours)
    ranks_of = [0] * size
    for node in graph.ranks:
        ranks_of[int(colours[node])] += 1
    goal = int(colours[sink])
    while True:
        x = best.value
        edges: list[Edge] = [(a, b, capacity * x.denominator) for a, b, capacity in links]
        edges += [(size, colour, ranks * x.numerator) for colour, ranks in enumerate(ranks_of)]
        flow, side = FlowNetwork(size + 1, edges).min_cut(size, goal)
        if flow >= len(graph.ranks) * x.numerator:
            return best
        leaving = sum(capacity for a, b, capacity in links if a in side and b not in side)
        ranks_inside = sum(ranks_of[colour] for colour in side if colour < size)
        nodes = frozenset(node for node in range(graph.size) if int(colours[node]) in side)
        best = Cut(Fraction(leaving, ranks_inside), nodes, exact=False)


def _from_rank_0(graph: Indexed, best: Cut) -> Cut:
    """The smallest cut with rank 0 on the sending side, or ``best`` if that is not larger."""
    first, *others = graph.ranks
    if len(graph.ranks) * len(graph.edges) > EXACT_WORK:
        return _from_rank_0_on_colours(graph, best)
    network, links = graph.network(), _wide(graph)
    reached = {first}
    for node in others:
        # What a link as wide as the best cut leads to can't be cut off by a smaller one.
        _spread(links, reached, best.value)
        if node not in reached:
            flow, side = network.min_cut(first, node)
            if flow < best.value:
                best = Cut(Fraction(flow), side, exact=best.exact)
            reached.add(node)
    return best


def _from_rank_0_on_colours(graph: Indexed, best: Cut) -> Cut:
    colouring = Colouring(graph)
    first = graph.ranks[0]
    seen: set[int] = set()
    around = colouring.singled_out([first])
    for node in graph.ranks[1:]:
        if int(around[node]) in seen:
            continue
        seen.add(int(around[node]))
        colours = colouring.singled_out([first, node])
        size, links = colouring.quotient(colours)
        flow, side = FlowNetwork(size, links).min_cut(int(colours[first]), int(colours[node]))
        if flow < best.value:
            nodes = frozenset(n for n in range(graph.size) if int(colours[n]) in side)
            best = Cut(Fraction(flow), nodes, exact=False)
    return best._replace(exact=False)


def _wide(graph: Indexed) -> dict[int, list[tuple[int, int]]]:
    links: dict[int, list[tuple[int, int]]] = {}
    for tail, head, capacity in graph.edges:
        links.setdefault(tail, []).append((head, capacity))
    return links


def _spread(
    links: dict[int, list[tuple[int, int]]], reached: set[int], capacity: Fraction | int
) -> None:
    """Add to ``reached`` what links of at least ``capacity`` lead to (Menger: a flow of that size
    to one end of a link is one to its other end)."""
    waiting: Sequence[int] = list(reached)
    while waiting:
        found: list[int] = []
        for node in waiting:
            for head, width in links.get(node, ()):
                if head not in reached and width >= capacity:
                    reached.add(head)
                    found.append(head)
        waiting = found
