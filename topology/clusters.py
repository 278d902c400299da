"""Which ranks are near each other: the groups of nodes that a graph's links suggest."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

from trainmesh.topology.indexed import Indexed

__all__ = ["Groups", "clustered_ranks", "divisions"]

MAX_DIVISIONS = 16
"""Links of many different speeds would suggest very many."""
Groups = tuple[frozenset[int], ...]
"""Disjoint sets of nodes (numbers of ``Indexed``) with at least one rank each."""
_Ends = list[tuple[int, int]]


def divisions(graph: Indexed) -> list[Groups]:
    """At least two groups that hold all ranks between them, for every way that the graph
    suggests: what stays joined without the links slower than each bandwidth there is, and
    without those farther than each distance from the ranks (the switches of one tier)."""
    found: dict[frozenset[frozenset[int]], Groups] = {}
    by_speed: dict[tuple[int, int], _Ends] = defaultdict(list)
    for (_, slowness), ends in _by_tier_and_speed(graph).items():
        by_speed[0, slowness] += ends
    for order in (_by_tier_and_speed(graph), by_speed):
        for groups in _joined(graph, order):
            if len(groups) > 1:
                found.setdefault(frozenset(groups), groups)
    return list(found.values())[:MAX_DIVISIONS]


def clustered_ranks(graph: Indexed) -> list[int]:
    """The ranks in an order in which all groups of near ranks are contiguous, whatever the size
    of the group; those with low numbers come first."""
    rank_of = {node: rank for rank, node in enumerate(graph.ranks)}
    union = _Union(graph.size)
    members = {node: [rank] for node, rank in rank_of.items()}
    order = _by_tier_and_speed(graph)
    for key in sorted(order):
        before = {node: union.find(node) for ends in order[key] for node in ends}
        for tail, head in order[key]:
            union.join(tail, head)
        parts: dict[int, dict[int, list[int]]] = defaultdict(dict)
        for old in before.values():
            if old in members:
                parts[union.find(old)][old] = members[old]
        for new, joined in parts.items():
            if len(joined) > 1 or new not in joined:
                for old in joined:
                    del members[old]
                lists = sorted(joined.values(), key=min)
                members[new] = [rank for part in lists for rank in part]
    return [rank for part in sorted(members.values(), key=min) for rank in part]


class _Union:
    """Disjoint sets with path halving."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def join(self, a: int, b: int) -> None:
        self._parent[self.find(b)] = self.find(a)


def _by_tier_and_speed(graph: Indexed) -> dict[tuple[int, int], _Ends]:
    """The ends of the links: near the ranks first, the fast ones of a tier first."""
    distance = _distance(graph)
    found: dict[tuple[int, int], _Ends] = defaultdict(list)
    for tail, head, capacity in graph.edges:
        found[min(distance[tail], distance[head]), -capacity].append((tail, head))
    return found


def _distance(graph: Indexed) -> list[int]:
    """Of each node from the nearest rank, in links."""
    neighbours: dict[int, list[int]] = defaultdict(list)
    for tail, head, _ in graph.edges:
        neighbours[tail].append(head)
        neighbours[head].append(tail)
    distance = [-1] * graph.size
    waiting = deque(graph.ranks)
    for node in graph.ranks:
        distance[node] = 0
    while waiting:
        node = waiting.popleft()
        for other in neighbours[node]:
            if distance[other] < 0:
                distance[other] = distance[node] + 1
                waiting.append(other)
    return distance


def _joined(graph: Indexed, order: Mapping[tuple[int, int], _Ends]) -> Iterator[Groups]:
    """The groups after the links of each key, in turn, until all ranks are in one."""
    union = _Union(graph.size)
    for key in sorted(order):
        for tail, head in order[key]:
            union.join(tail, head)
        groups = _with_ranks(graph, [union.find(node) for node in range(graph.size)])
        yield groups
        if len(groups) == 1:
            return


def _with_ranks(graph: Indexed, label: Sequence[int]) -> Groups:
    """The sets of nodes with one label that hold a rank, in the order of their first ranks."""
    groups: dict[int, set[int]] = {label[node]: set() for node in graph.ranks}
    for node, name in enumerate(label):
        if name in groups:
            groups[name].add(node)
    return tuple(frozenset(group) for group in groups.values())
