"""The path of a message between two ranks: all the cheapest paths, in equal parts.

Switches forward and ranks compute, so a path through another rank is used only if there is no
other. Equally cheap paths (the spines of a leaf-spine fabric) share the bytes, as with ECMP on
average.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple, Protocol

from trainmesh.types import LinkCost

__all__ = ["REFERENCE_BYTES", "LinkLike", "Route", "RouteFinder", "natural"]

REFERENCE_BYTES = 1_000_000
"""Message size for which the cheapest path between two ranks is chosen."""
PENALTY_S = 1e6
"""For each rank that a way leads through."""
MAX_KEPT_NODES = 1_000_000
"""Of all trees of switches together: some 200 MB."""
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
    """Distances (s) from a node, and the nodes before each node on its cheapest ways."""

    distance: dict[str, float]
    before: dict[str, list[str]]


class _Way(NamedTuple):
    """From a rank to the switch ``first``, over switches, and from one of ``last`` to a rank."""

    first: str
    last: list[str]


_Steps = Callable[[str], Iterable[tuple[str, float]]]
"""Where one can go from a node, and for how many seconds."""


class RouteFinder:
    """Routes of one graph, found when they are asked for and kept; so are the distances between
    switches, which are far fewer than the ranks."""

    def __init__(self, links: Iterable[LinkLike], ranks: Collection[str]) -> None:
        self._ranks = frozenset(ranks)
        self._seconds: dict[str, dict[str, float]] = defaultdict(dict)
        self._alpha_s: dict[tuple[str, str], float] = {}
        self._switches_into: dict[str, list[str]] = defaultdict(list)
        self._switches: dict[str, list[str]] = defaultdict(list)
        self._ends: dict[str, list[str]] = defaultdict(list)
        for link in links:
            self._seconds[link.src][link.dst] = link.cost.time_s(REFERENCE_BYTES)
            self._alpha_s[link.src, link.dst] = link.cost.alpha_s
            after = self._ends if link.dst in self._ranks else self._switches
            after[link.src].append(link.dst)
            if link.src not in self._ranks:
                self._switches_into[link.dst].append(link.src)
        self._trees: dict[str, _Tree] = {}
        self._backward_trees: dict[str, _Tree] = {}
        self._through_ranks: dict[str, _Tree] = {}
        self._routes: dict[tuple[str, str], Route] = {}

    def route(self, src: str, dst: str) -> Route:
        """The cheapest ways from rank node ``src`` to rank node ``dst``, which can be reached."""
        key = (src, dst)
        if src == dst:
            return Route((), 0.0)
        if key not in self._routes:
            if ways := self._ways(src, dst):
                self._routes[key] = self._over_switches(ways, src, dst)
            elif relays := self._relays(src, dst):
                self._routes[key] = self._over_ranks(relays, src, dst)
            else:
                parts = _Parts(self._alpha_s)
                parts.spread(self._anywhere(src), src, [dst], 1.0)
                self._routes[key] = parts.route(dst)
        return self._routes[key]

    def path(self, src: str, dst: str) -> tuple[str, ...]:
        """The nodes of one of those ways; ties go to the names that sort first."""
        if src == dst:
            return (src,)
        if ways := self._ways(src, dst):
            way = min(ways, key=lambda way: natural(way.first or dst))
            if not way.first:
                return (src, dst)
            last = min(way.last, key=natural)
            return (src, *_backwards(self._tree(way.first), way.first, last), dst)
        if relays := self._relays(src, dst):
            relay = min(relays, key=natural)
            return (*self.path(src, relay), *self.path(relay, dst)[1:])
        return _backwards(self._anywhere(src), src, dst)

    def along(self, nodes: Sequence[str]) -> Route:
        """The one way over ``nodes``.

        Raises:
            KeyError: two of them that follow each other have no link.
        """
        hops = list(pairwise(nodes))
        parts = tuple((f"{src}->{dst}", 1.0) for src, dst in hops)
        return Route(parts, sum(self._alpha_s[hop] for hop in hops))

    def _ways(self, src: str, dst: str) -> list[_Way]:
        """The cheapest ways without a rank in between; a direct link has no first switch."""
        found: list[tuple[float, str, str]] = []
        if dst in self._seconds[src]:
            found.append((self._seconds[src][dst], "", ""))
        for first in self._switches[src]:
            distance = self._tree(first).distance
            first_s = self._seconds[src][first]
            for last in self._switches_into[dst]:
                if last in distance:
                    way_s = first_s + distance[last] + self._seconds[last][dst]
                    found.append((way_s, first, last))
        least_s = min(found, default=(0.0, "", ""))[0] * TIE
        ways: dict[str, list[str]] = defaultdict(list)
        for way_s, first, last in found:
            if way_s <= least_s:
                ways[first].append(last)
        return [_Way(first, last) for first, last in ways.items()]

    def _over_switches(self, ways: Sequence[_Way], src: str, dst: str) -> Route:
        parts = _Parts(self._alpha_s)
        for first, last in ways:
            if first:
                parts.add(src, first, 1 / len(ways))
                parts.spread(self._tree(first), first, last, 1 / len(ways), dst)
            else:
                parts.add(src, dst, 1 / len(ways))
        return parts.route(dst)

    def _over_ranks(self, relays: Sequence[str], src: str, dst: str) -> Route:
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
        behind = {dst: 0.0}
        for last in self._switches_into[dst]:
            last_s = self._seconds[last][dst]
            for node, more_s in self._backward_tree(last).distance.items():
                behind[node] = min(last_s + more_s, behind.get(node, math.inf))
        total_s: dict[str, float] = {}
        least_s = math.inf
        for node, so_far_s in self._ahead(src):
            if so_far_s > least_s * TIE:
                break
            for relay in self._ends[node]:
                here_s = so_far_s + self._seconds[node][relay]
                if here_s > least_s * TIE or relay == src:
                    continue
                for following, link_s in self._seconds[relay].items():
                    if following in behind:
                        way_s = here_s + link_s + behind[following]
                        total_s[relay] = min(way_s, total_s.get(relay, math.inf))
                        least_s = min(least_s, way_s)
        return [relay for relay, way_s in total_s.items() if way_s <= least_s * TIE]

    def _ahead(self, src: str) -> list[tuple[str, float]]:
        """``src`` and all switches that it reaches without a rank in between, the nearest first."""
        distance = {src: 0.0}
        for first in self._switches[src]:
            first_s = self._seconds[src][first]
            for node, more_s in self._tree(first).distance.items():
                distance[node] = min(first_s + more_s, distance.get(node, math.inf))
        return sorted(distance.items(), key=lambda item: item[1])

    def _tree(self, switch: str) -> _Tree:
        """From ``switch`` to all switches, without a rank in between."""
        seconds = self._seconds
        return _kept(
            self._trees, switch, lambda node: ((n, seconds[node][n]) for n in self._switches[node])
        )

    def _backward_tree(self, switch: str) -> _Tree:
        """From all switches to ``switch``."""
        seconds = self._seconds
        return _kept(
            self._backward_trees,
            switch,
            lambda node: ((n, seconds[n][node]) for n in self._switches_into[node]),
        )

    def _anywhere(self, src: str) -> _Tree:
        """To all nodes, through as few ranks as can be."""

        def steps(node: str) -> Iterator[tuple[str, float]]:
            for following, link_s in self._seconds[node].items():
                yield following, link_s + (PENALTY_S if following in self._ranks else 0.0)

        if src not in self._through_ranks:
            self._through_ranks[src] = _search(src, steps)
        return self._through_ranks[src]


class _Parts:
    """Adds up what part of the bytes crosses each link, and the alphas on the way."""

    def __init__(self, alpha_s: Mapping[tuple[str, str], float]) -> None:
        self._alpha_s = alpha_s
        self._parts: dict[str, float] = {}
        self._longest_s: dict[str, float] = defaultdict(float)

    def add(self, src: str, dst: str, part: float) -> None:
        """``part`` crosses the link from ``src`` to ``dst``; links before it come first."""
        name = f"{src}->{dst}"
        self._parts[name] = self._parts.get(name, 0.0) + part
        alpha_s = self._longest_s[src] + self._alpha_s[src, dst]
        self._longest_s[dst] = max(self._longest_s[dst], alpha_s)

    def spread(
        self, tree: _Tree, root: str, last: Sequence[str], part: float, dst: str | None = None
    ) -> None:
        """``part`` comes from ``root`` to the nodes ``last``, and from these to ``dst`` if there is
        one; each node hands on what it gets in equal parts to all that are on cheapest ways."""
        after: dict[str, list[str]] = defaultdict(list)
        seen, waiting = dict.fromkeys(last, 0.0), list(last)
        while waiting:
            node = waiting.pop()
            for previous in tree.before[node]:
                after[previous].append(node)
                if previous not in seen:
                    seen[previous] = 0.0
                    waiting.append(previous)
        if dst is not None:
            for node in last:
                after[node].append(dst)
            seen[dst] = 0.0
        seen[root] = part
        for node in sorted(after, key=tree.distance.__getitem__):
            each = seen[node] / len(after[node])
            for following in after[node]:
                seen[following] += each
                self.add(node, following, each)

    def route(self, dst: str) -> Route:
        """All of it, at its end."""
        return Route(tuple(self._parts.items()), self._longest_s[dst])


def _backwards(tree: _Tree, root: str, node: str) -> tuple[str, ...]:
    """One way from ``root`` to ``node``; ties go to the names that sort first."""
    way = [node]
    while way[-1] != root:
        way.append(min(tree.before[way[-1]], key=natural))
    return tuple(reversed(way))


def _kept(trees: dict[str, _Tree], root: str, steps: _Steps) -> _Tree:
    """The tree of ``root``, kept in ``trees`` as long as these are not too large together."""
    if root not in trees:
        tree = _search(root, steps)
        if (len(trees) + 1) * len(tree.distance) > MAX_KEPT_NODES:
            trees.clear()
        trees[root] = tree
    return trees[root]


def _search(src: str, steps: _Steps) -> _Tree:
    """Dijkstra's algorithm with all ties."""
    tree = _Tree({src: 0.0}, {src: []})
    done: set[str] = set()
    queue = [(0.0, src)]
    while queue:
        so_far_s, node = heappop(queue)
        if node in done:
            continue
        done.add(node)
        for following, step_s in steps(node):
            if following in done:
                continue
            total_s = so_far_s + step_s
            known_s = tree.distance.get(following, math.inf)
            if total_s * TIE < known_s:
                tree.distance[following], tree.before[following] = total_s, [node]
                heappush(queue, (total_s, following))
            elif total_s <= known_s * TIE:
                tree.before[following].append(node)
    return tree


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts node2 before node10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
