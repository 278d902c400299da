"""Which way a message between two ranks takes: all the cheapest paths, in equal parts.

Switches forward, ranks compute: a way through another rank is taken only where there is no
other. Several equally cheap ways (the spines of a leaf-spine fabric) share the bytes as ECMP
does on average.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
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


class Router:
    """Routes of one graph, found when they are asked for and kept."""

    def __init__(self, links: Iterable[LinkLike], ranks: Collection[str]) -> None:
        self._ranks = frozenset(ranks)
        self._seconds: dict[str, dict[str, float]] = defaultdict(dict)
        self._alpha_s: dict[tuple[str, str], float] = {}
        self._into: dict[str, list[str]] = defaultdict(list)
        self._forwarding: dict[str, list[str]] = defaultdict(list)
        for link in links:
            self._seconds[link.src][link.dst] = link.cost.time_s(REFERENCE_BYTES)
            self._alpha_s[link.src, link.dst] = link.cost.alpha_s
            self._into[link.dst].append(link.src)
            if link.dst not in self._ranks:
                self._forwarding[link.src].append(link.dst)
        self._through_ranks: dict[str, _Tree] = {}
        self._routes: dict[tuple[str, str], Route] = {}

    def route(self, src: str, dst: str) -> Route:
        """The cheapest ways from rank node ``src`` to rank node ``dst``, which can be reached."""
        key = (src, dst)
        if key not in self._routes:
            self._routes[key] = self._shared(self._tree(src, dst), src, dst)
        return self._routes[key]

    def path(self, src: str, dst: str) -> tuple[str, ...]:
        """The nodes of one of those ways; ties go to the names that sort first."""
        before = self._tree(src, dst).before
        backwards = [dst]
        while backwards[-1] != src:
            backwards.append(min(before[backwards[-1]], key=natural))
        return tuple(reversed(backwards))

    def along(self, nodes: Sequence[str]) -> Route:
        """The one way over ``nodes``.

        Raises:
            KeyError: two of them that follow each other have no link.
        """
        hops = list(zip(nodes, nodes[1:], strict=False))
        parts = tuple((f"{src}->{dst}", 1.0) for src, dst in hops)
        return Route(parts, sum(self._alpha_s[hop] for hop in hops))

    def _shared(self, tree: _Tree, src: str, dst: str) -> Route:
        """Each node on the ways hands on what it gets in equal parts."""
        after: dict[str, list[str]] = defaultdict(list)
        seen, waiting = {dst}, [dst]
        while waiting:
            node = waiting.pop()
            for previous in tree.before[node]:
                after[previous].append(node)
                if previous not in seen:
                    seen.add(previous)
                    waiting.append(previous)
        part = dict.fromkeys(seen, 0.0)
        longest_s = dict.fromkeys(seen, 0.0)
        part[src] = 1.0
        parts: list[tuple[str, float]] = []
        for node in sorted(seen - {dst}, key=lambda name: (tree.distance[name], natural(name))):
            each = part[node] / len(after[node])
            for following in after[node]:
                parts.append((f"{node}->{following}", each))
                part[following] += each
                alpha_s = longest_s[node] + self._alpha_s[node, following]
                longest_s[following] = max(longest_s[following], alpha_s)
        return Route(tuple(parts), longest_s[dst])

    def _tree(self, src: str, dst: str) -> _Tree:
        tree = self._dijkstra(src, dst)
        if dst in tree.distance:
            return tree
        if src not in self._through_ranks:
            self._through_ranks[src] = self._dijkstra(src, None)
        return self._through_ranks[src]

    def _dijkstra(self, src: str, dst: str | None) -> _Tree:
        """From ``src`` over switches only to ``dst``, or, without one, to all nodes and through
        ranks as the last resort. What can't be part of a cheapest way to ``dst`` is left out."""
        tree = _Tree({src: 0.0}, {src: []})
        last_s = (
            min((self._seconds[node][dst] for node in self._into[dst]), default=0.0) if dst else 0.0
        )
        done: set[str] = set()
        queue = [(0.0, src)]
        while queue:
            so_far_s, node = heappop(queue)
            if node == dst:
                break
            if node in done:
                continue
            done.add(node)
            for following, seconds in self._steps(node, dst):
                total_s = so_far_s + seconds
                limit_s = tree.distance.get(dst, math.inf) * TIE if dst else math.inf
                if following in done or (following != dst and total_s + last_s > limit_s):
                    continue
                known_s = tree.distance.get(following, math.inf)
                if total_s * TIE < known_s:
                    tree.distance[following], tree.before[following] = total_s, [node]
                    heappush(queue, (total_s, following))
                elif total_s <= known_s * TIE:
                    tree.before[following].append(node)
        return tree

    def _steps(self, node: str, dst: str | None) -> Iterator[tuple[str, float]]:
        seconds = self._seconds[node]
        if dst is None:
            for following, link_s in seconds.items():
                yield following, link_s + (PENALTY_S if following in self._ranks else 0.0)
            return
        if dst in seconds:
            yield dst, seconds[dst]
        for following in self._forwarding[node]:
            yield following, seconds[following]


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts node2 before node10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)
