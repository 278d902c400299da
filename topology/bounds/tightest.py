"""One bound for a collective on a graph, with the bottleneck that sets it.

- cut: a set of nodes whose links out are too narrow for what has to leave it. For all-gather and
  reduce-scatter it is reached where switches have as much capacity in as out; not exact else.
- volume: all the ranks' links together are too narrow for the 2 (N - 1) messages that each
  element of an all-reduce needs.
- forest: the links between several groups of ranks are; the optimum over reduce-then-broadcast
  forests (``reduction``) where the graph is small enough for the linear programme, else the
  tightest of the divisions into groups that the graph suggests (``partition``).

The cut and volume bounds, and those of groups, hold for every algorithm without reduction inside
switches; the linear programme's hold for reduce-then-broadcast forests, which every known
algorithm is one of.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from trainmesh.topology.bounds.cuts import Cut, broadcast_cut, separating_cut
from trainmesh.topology.bounds.partition import single_ranks, volume
from trainmesh.topology.bounds.reduction import reduction_optimum
from trainmesh.topology.clusters import Groups, divisions
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.indexed import Indexed
from trainmesh.types import Collective

__all__ = ["Bound", "algbw_limit", "bound"]

PROGRAMME_RANKS = 64
"""Above, the linear programme takes longer than a plan may."""
PROGRAMME_LINKS = 1_200
"""Up to these the linear programme takes seconds at most."""


@dataclass(frozen=True)
class Bound:
    """``time_s`` for the asked number of bytes.

    ``cut`` holds the nodes on the sending side of the cut, ``links`` the links that limit;
    ``groups`` the sets of nodes that are too far apart, where those are more than the two sides of
    a cut. ``exact``: it is known to be the best of its kind; where it is False, the true bound may
    be a longer time, but no longer than that of the best plan.
    """

    time_s: float
    kind: str
    cut: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class _Limit:
    """``algbw``: the largest, in bytes/s, exactly."""

    algbw: Fraction
    kind: str
    cut: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    exact: bool = True


def bound(graph: LinkGraph, nbytes: int, collective: Collective = Collective.ALLREDUCE) -> Bound:
    """The lower bound for ``nbytes``: each rank's for an all-reduce, of all ranks together for
    all-gather and reduce-scatter; 0 s for one rank."""
    if graph.world_size == 1:
        return Bound(0.0, "none")
    limit = _limit(graph, collective)
    time_s = float(nbytes / limit.algbw)
    return Bound(time_s, limit.kind, limit.cut, limit.links, limit.groups, limit.exact)


def algbw_limit(graph: LinkGraph, collective: Collective) -> Fraction:
    """The largest algbw that the bound allows, in bytes/s, exactly; at least two ranks."""
    return _limit(graph, collective).algbw


@lru_cache(maxsize=8)
def _limit(graph: LinkGraph, collective: Collective) -> _Limit:
    indexed = Indexed.of(graph)
    if collective == Collective.ALLREDUCE:
        return _all_reduce(graph, indexed)
    if collective == Collective.ALLGATHER:
        cut = broadcast_cut(indexed)
    else:
        received = broadcast_cut(indexed.reversed())
        cut = received._replace(side=frozenset(range(indexed.size)) - received.side)
    algbw = len(indexed.ranks) * cut.value
    return _of_cut(graph, indexed, cut._replace(exact=cut.exact and _balanced(indexed)), algbw)


def _balanced(indexed: Indexed) -> bool:
    """Whether all switches have as much capacity in as out."""
    surplus = [0] * indexed.size
    for tail, head, capacity in indexed.edges:
        surplus[tail] -= capacity
        surplus[head] += capacity
    ranks = frozenset(indexed.ranks)
    return not any(rest for node, rest in enumerate(surplus) if node not in ranks)


def _all_reduce(graph: LinkGraph, indexed: Indexed) -> _Limit:
    cut = separating_cut(indexed)
    alone = volume(indexed, single_ranks(indexed))
    found = divisions(indexed)
    seeds = frozenset(group for groups in found for group in groups)
    limits = [_of_cut(graph, indexed, cut, cut.value)]
    limits.append(
        _Limit(
            alone.capacity * indexed.unit, "volume", links=_between(graph, alone.groups, indexed)
        )
    )
    for groups in found:
        together = volume(indexed, groups)
        if together.capacity < min(limit.algbw for limit in limits) / indexed.unit:
            limits.append(_of_groups(graph, indexed, together.capacity, groups))
    tightest = min(limits, key=lambda limit: limit.algbw)
    if len(indexed.ranks) > PROGRAMME_RANKS or len(indexed.edges) > PROGRAMME_LINKS:
        return _inexact(tightest)
    best = reduction_optimum(indexed, seeds)
    if best is None:
        return _inexact(tightest)
    if best.rate * indexed.unit >= tightest.algbw * (1 - Fraction(1, 10**7)):
        return tightest
    links = tuple(graph.links[index].name for index in best.edges)
    names = tuple(_names(group, indexed) for group in best.groups)
    rate = best.rate * indexed.unit
    return _Limit(rate, "forest", links=links, groups=names, exact=best.exact)


def _inexact(limit: _Limit) -> _Limit:
    return _Limit(limit.algbw, limit.kind, limit.cut, limit.links, limit.groups, exact=False)


def _of_cut(graph: LinkGraph, indexed: Indexed, cut: Cut, algbw: Fraction) -> _Limit:
    side = frozenset(indexed.names[node] for node in cut.side)
    links = tuple(li.name for li in graph.links if li.src in side and li.dst not in side)
    names = _names(cut.side, indexed)
    return _Limit(algbw * indexed.unit, "cut", names, links, exact=cut.exact)


def _of_groups(graph: LinkGraph, indexed: Indexed, capacity: Fraction, groups: Groups) -> _Limit:
    names = tuple(_names(group, indexed) for group in groups)
    links = _between(graph, groups, indexed)
    return _Limit(capacity * indexed.unit, "forest", links=links, groups=names)


def _between(graph: LinkGraph, groups: Groups, indexed: Indexed) -> tuple[str, ...]:
    """The links that leave a group."""
    group_of = {
        indexed.names[node]: number for number, group in enumerate(groups) for node in group
    }
    return tuple(
        link.name
        for link in graph.links
        if link.src in group_of and group_of[link.src] != group_of.get(link.dst)
    )


def _names(nodes: frozenset[int], indexed: Indexed) -> tuple[str, ...]:
    return tuple(sorted(indexed.names[node] for node in nodes))
