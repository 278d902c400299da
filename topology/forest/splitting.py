"""Switches out of the graph: links into and out of one become links between its neighbours.

Splitting off (u, w), (w, t) into (u, t) keeps a flow of ``demand`` to every rank as long as every
set of nodes that holds a rank, but not the source, keeps that much capacity in. The sets that lose
some hold w but neither u nor t, or u and t but not w; min-cuts give the slack of both. For a
balanced switch every link out can be split off with links in (Bang-Jensen, Frank and Jackson 1995;
used for collectives by ForestColl, arXiv 2402.06787). Each new link keeps its way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trainmesh.errors import PlanError
from trainmesh.topology.forest.rooted import Matrix, Rooted, flow

__all__ = ["Ways", "without_switches"]

Ways = dict[tuple[int, int], dict[tuple[int, ...], int]]
"""For each pair of nodes the switches on its ways, and the capacity of each."""


def without_switches(rooted: Rooted, *, spread: bool = True) -> Ways:
    """Links between ranks that carry what ``rooted`` does, with their ways through switches.

    Args:
        spread: Join each neighbour of a switch with many others, which makes shallow trees;
            otherwise with as few as can be, which makes fewer trees, sooner.

    Raises:
        PlanError: a switch has more capacity in than out, or the other way round.
    """
    split = _Splitting(rooted)
    for switch in rooted.switches():
        split.remove(switch, spread)
    return split.ways


class _Splitting:
    """The graph while its switches go. ``ways`` adds up to ``capacity``."""

    def __init__(self, rooted: Rooted) -> None:
        self.ranks, self.source, self.demand = rooted.ranks, rooted.source, rooted.demand
        self.capacity: Matrix = rooted.capacity.copy()
        tails, heads = np.nonzero(self.capacity[: self.source])
        self.ways: Ways = {
            (u, v): {(): int(self.capacity[u, v])}
            for u, v in zip(tails.tolist(), heads.tolist(), strict=True)
        }
        # The rank that stood in the way last is the first to be asked again.
        self._asked = list(range(self.ranks))

    def remove(self, switch: int, spread: bool) -> None:
        """In proportion first, if links are to be spread; then whatever is left."""
        if spread:
            into, out = self.capacity[:, switch].astype(float), self.capacity[switch].astype(float)
            part = np.ceil(np.outer(into, out) / np.maximum(1, into.sum() - into))
            for u, t in self._pairs(switch):
                if u != t:
                    self._split(u, switch, t, int(part[u, t]))
        going_on = True
        while going_on:
            done = [self._split(u, switch, t, self.demand) for u, t in self._pairs(switch)]
            going_on = any(done)
        if self.capacity[switch].any() or self.capacity[:, switch].any():
            raise PlanError(f"switch {switch} has not as much capacity in as out")

    def _pairs(self, switch: int) -> Iterator[tuple[int, int]]:
        """Neighbours to join, in rounds in which each is asked for once. Loops come last: they
        waste capacity that other links may need."""
        sources = np.flatnonzero(self.capacity[:, switch]).tolist()
        targets = np.flatnonzero(self.capacity[switch]).tolist()
        for shift in range(1, len(sources) + 1):
            for index, t in enumerate(targets):
                u = sources[(index + shift) % len(sources)]
                if u != t:
                    yield u, t
        yield from ((t, t) for t in targets)

    def _split(self, u: int, w: int, t: int, most: int) -> bool:
        """Replace (u, w), (w, t) by (u, t) as far as the sets allow; whether that is at all."""
        wanted = int(min(self.capacity[u, w], self.capacity[w, t], most))
        amount = self._slack(u, w, t, wanted) if wanted else 0
        if amount:
            self._replace(u, w, t, amount)
        return amount > 0

    def _slack(self, u: int, w: int, t: int, wanted: int) -> int:
        """How much of ``wanted`` every set can lose."""
        closed = self.demand + wanted
        below = self.capacity.copy()
        below[self.source, w] = below[u, t] = closed
        ends = [rank for rank in (u, t) if rank < self.ranks]
        for rank in [u] if ends else list(self._asked):
            if wanted:
                wanted = self._limited(below, rank, t, wanted)
        above = self.capacity.copy()
        above[self.source, [u, t]] = closed
        for rank in list(self._asked):
            if wanted and rank not in ends:
                wanted = self._limited(above, rank, w, wanted)
        return wanted

    def _limited(self, capacity: Matrix, rank: int, sink: int, wanted: int) -> int:
        """The slack of sets with ``sink`` and ``rank``."""
        before, capacity[rank, sink] = capacity[rank, sink], self.demand + wanted
        possible = flow(capacity, self.source, sink, self.demand + wanted) - self.demand
        capacity[rank, sink] = before
        if possible <= 0 and rank < self.ranks:
            self._asked.remove(rank)
            self._asked.insert(0, rank)
        return max(0, min(possible, wanted))

    def _replace(self, u: int, w: int, t: int, amount: int) -> None:
        self.capacity[u, w] -= amount
        self.capacity[w, t] -= amount
        first, second = self._taken(u, w, amount), self._taken(w, t, amount)
        if u == t:
            return
        self.capacity[u, t] += amount
        ways = self.ways.setdefault((u, t), {})
        for way in _joined(first, w, second):
            ways[way.via] = ways.get(way.via, 0) + way.amount

    def _taken(self, u: int, v: int, amount: int) -> list[_Way]:
        """``amount`` of the ways from u to v, which lose it; the widest first."""
        ways = self.ways[u, v]
        taken = []
        for via in sorted(ways, key=lambda via: (-ways[via], via)):
            part = min(amount, ways[via])
            if part:
                taken.append(_Way(via, part))
                ways[via] -= part
                amount -= part
                if not ways[via]:
                    del ways[via]
        if not ways:
            del self.ways[u, v]
        return taken


class _Way(NamedTuple):
    via: tuple[int, ...]
    amount: int


def _joined(first: list[_Way], w: int, second: list[_Way]) -> Iterator[_Way]:
    """Ways over w: the parts of ``first`` go on with those of ``second``."""
    first, second = list(first), list(second)
    while first and second:
        (before, some), (after, other) = first.pop(), second.pop()
        amount = min(some, other)
        yield _Way(_direct((*before, w, *after)), amount)
        if some > amount:
            first.append(_Way(before, some - amount))
        if other > amount:
            second.append(_Way(after, other - amount))


def _direct(via: tuple[int, ...]) -> tuple[int, ...]:
    """Without the round trips: a switch that comes twice is passed once."""
    kept: list[int] = []
    for node in via:
        if node in kept:
            del kept[kept.index(node) :]
        kept.append(node)
    return tuple(kept)
