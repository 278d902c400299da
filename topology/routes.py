"""Which way a message between two ranks takes: all the cheapest paths, in equal parts.

Switches forward, ranks compute: a way through another rank is taken only where there is no
other. Several equally cheap ways (the spines of a leaf-spine fabric) share the bytes as ECMP
does on average.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple, Protocol

from trainmesh.types import LinkCost

__all__ = ["REFERENCE_BYTES", "LinkLike", "Route", "Router", "natural"]

REFERENCE_BYTES = 1_000_000
"""Message size for which the cheapest path between two ranks is chosen."""
PENALTY_S = 1e6
"""For each rank that a way leads through."""
TIE = 1 + 1e-9
"""Path costs within this factor are equal."""


class LinkLike(Protocol):
    """What a router needs of a link."""

    @property
    def src(self) -> str: ...
    @property
    def dst(self) -> str: ...
    @property
    def cost(self) -> LinkCost: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Route:
    """``parts``: (link name, part of the bytes that it carries, in (0, 1]); ``alpha_s``: that of
    the longest of the paths."""

    parts: tuple[tuple[str, float], ...]
    alpha_s: float


class _Tree(NamedTuple):
    """Distances (s) from a source, and the nodes before each node on its cheapest ways."""

    distance: dict[str, float]
    before: dict[str, list[str]]


_Steps = Callable[[str], Iterable[tuple[str, float]]]
"""Where one can go from a node, and for how many seconds."""


class Router:
    """Routes of one graph, found when they are asked for and kept."""

    def __init__(self, links: Iterable[LinkLike], ranks: Collection[str]) -> None:
        self._ranks = frozenset(ranks)
        self._seconds: dict[str, dict[str, float]] = defaultdict(dict)
        self._alpha_s: dict[tuple[str, str], float] = {}
        self._into: dict[str, list[str]] = defaultdict(list)
        self._switches: dict[str, list[str]] = defaultdict(list)
        self._ends: dict[str, list[str]] = defaultdict(list)
        for link in links:
            self._seconds[link.src][link.dst] = link.cost.time_s(REFERENCE_BYTES)
            self._alpha_s[link.src, link.dst] = link.cost.alpha_s
            self._into[link.dst].append(link.src)
            after = self._ends if link.dst in self._ranks else self._switches
            after[link.src].append(link.dst)
        self._through_ranks: dict[str, _Tree] = {}
        self._routes: dict[tuple[str, str], Route] = {}

    def route(self, src: str, dst: str) -> Route:
        """The cheapest ways from rank node ``src`` to rank node ``dst``, which can be reached."""
        key = (src, dst)
        if key not in self._routes:
            tree = self._over_switches(src, dst)
            if tree is not None:
                self._routes[key] = self._shared(tree, src, dst)
            elif relays := self._relays(src, dst):
                self._routes[key] = self._over(relays, src, dst)
            else:
                self._routes[key] = self._shared(self._anywhere(src), src, dst)
        return self._routes[key]

    def path(self, src: str, dst: str) -> tuple[str, ...]:
        """The nodes of one of those ways; ties go to the names that sort first."""
        tree = self._over_switches(src, dst)
        if tree is None and (relays := self._relays(src, dst)):
            relay = min(relays, key=natural)
            return (*self.path(src, relay), *self.path(relay, dst)[1:])
        before = (tree or self._anywhere(src)).before
        backwards = [dst]
        while backwards[-1] != src:
            backwards.append(min(before[backwards[-1]], key=natural))
        return tuple(reversed(backwards))

    def along(self, nodes: Sequence[str]) -> Route:
        """The one way over ``nodes``.

        Raises:
            KeyError: two of them that follow each other have no link.
        """
        hops = list(pairwise(nodes))
        parts = tuple((f"{src}->{dst}", 1.0) for src, dst in hops)
        return Route(parts, sum(self._alpha_s[hop] for hop in hops))

    def _shared(self, tree: _Tree, src: str, dst: str) -> Route:
        """Each node on the ways hands on what it gets in equal parts."""
        after: dict[str, list[str]] = defaultdict(list)
        seen = {dst: 0.0}
        waiting = [dst]
        while waiting:
            node = waiting.pop()
            for previous in tree.before[node]:
                after[previous].append(node)
                if previous not in seen:
                    seen[previous] = 0.0
                    waiting.append(previous)
        part, longest_s = dict(seen), dict(seen)
        part[src] = 1.0
        parts: list[tuple[str, float]] = []
        for node in sorted((name for name in seen if name != dst), key=tree.distance.__getitem__):
            each = part[node] / len(after[node])
            for following in after[node]:
                parts.append((f"{node}->{following}", each))
                part[following] += each
                alpha_s = longest_s[node] + self._alpha_s[node, following]
                longest_s[following] = max(longest_s[following], alpha_s)
        return Route(tuple(parts), longest_s[dst])

    def _over(self, relays: Sequence[str], src: str, dst: str) -> Route:
        """Through each of the ranks ``relays`` an equal part."""
        parts: dict[str, float] = defaultdict(float)
        alpha_s = 0.0
        for relay in relays:
            first, second = self.route(src, relay), self.route(relay, dst)
            alpha_s = max(alpha_s, first.alpha_s + second.alpha_s)
            for name, part in (*first.parts, *second.parts):
                parts[name] += part / len(relays)
        return Route(tuple(parts.items()), alpha_s)

    def _relays(self, src: str, dst: str) -> list[str]:
        """The ranks through which the cheapest ways with only one rank between lead."""
        ahead = _search(src, self._on_switches)
        behind = _search(dst, self._back_on_switches)
        total_s: dict[str, float] = {}
        for node, so_far_s in ahead.distance.items():
            for relay in self._ends[node]:
                here_s = so_far_s + self._seconds[node][relay]
                for following, link_s in self._seconds[relay].items():
                    if following in behind.distance:
                        way_s = here_s + link_s + behind.distance[following]
                        total_s[relay] = min(way_s, total_s.get(relay, math.inf))
        least_s = min(total_s.values(), default=0.0) * TIE
        return [relay for relay, way_s in total_s.items() if way_s <= least_s]

    def _over_switches(self, src: str, dst: str) -> _Tree | None:
        last_s = min(self._seconds[node][dst] for node in self._into[dst])

        def steps(node: str) -> Iterator[tuple[str, float]]:
            if dst in self._seconds[node]:
                yield dst, self._seconds[node][dst]
            yield from self._on_switches(node)

        tree = _search(src, steps, goal=dst, last_s=last_s)
        return tree if dst in tree.distance else None

    def _anywhere(self, src: str) -> _Tree:
        """To all nodes, through as few ranks as can be."""

        def steps(node: str) -> Iterator[tuple[str, float]]:
            for following, link_s in self._seconds[node].items():
                yield following, link_s + (PENALTY_S if following in self._ranks else 0.0)

        if src not in self._through_ranks:
            self._through_ranks[src] = _search(src, steps)
        return self._through_ranks[src]

    def _on_switches(self, node: str) -> Iterator[tuple[str, float]]:
        return ((switch, self._seconds[node][switch]) for switch in self._switches[node])

    def _back_on_switches(self, node: str) -> Iterator[tuple[str, float]]:
        return (
            (previous, self._seconds[previous][node])
            for previous in self._into[node]
            if previous not in self._ranks
        )


def _search(src: str, steps: _Steps, goal: str | None = None, last_s: float = 0.0) -> _Tree:
    """Dijkstra's algorithm with all ties; up to ``goal`` if there is one, whose last step takes
    at least ``last_s``."""
    tree = _Tree({src: 0.0}, {src: []})
    done: set[str] = set()
    queue = [(0.0, src)]
    limit_s = math.inf
    while queue and queue[0][1] != goal:
        so_far_s, node = heappop(queue)
        if node in done:
            continue
        done.add(node)
        for following, step_s in steps(node):
            total_s = so_far_s + step_s
            if following in done or (following != goal and total_s + last_s > limit_s):
                continue
            known_s = tree.distance.get(following, math.inf)
            if total_s * TIE < known_s:
                tree.distance[following], tree.before[following] = total_s, [node]
                heappush(queue, (total_s, following))
                if following == goal:
                    limit_s = total_s * TIE
            elif total_s <= known_s * TIE:
                tree.before[following].append(node)
    return tree


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts node2 before node10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
