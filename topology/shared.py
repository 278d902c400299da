"""One group's share of a link graph when several groups of ranks communicate at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from trainmesh.topology.graph import Kind, LinkGraph, Node
from trainmesh.types import LinkCost

__all__ = ["share_of_first"]


def share_of_first(graph: LinkGraph, groups: Sequence[Sequence[int]]) -> LinkGraph:
    """The graph of the first group, whose ranks are numbered by their places in it.

    It has the links that lie on the cheapest routes between its ranks, each with the bandwidth
    divided by the number of groups whose routes use it (HSDP: the replica groups all-reduce their
    shards at the same time, over the same NICs or each over its own).
    """
    users: Counter[str] = Counter()
    for group in groups:
        users.update(_used(graph, group))
    own = _used(graph, groups[0])
    links = [
        replace(link, cost=_divided(link.cost, users[link.name]))
        for link in graph.links
        if link.name in own
    ]
    place = {rank: number for number, rank in enumerate(groups[0])}
    ends = {link.src for link in links} | {link.dst for link in links}
    ends |= {graph.rank_node(rank) for rank in groups[0]}  # one rank alone uses no link
    nodes = [_renumbered(node, place) for node in graph.nodes if node.name in ends]
    return LinkGraph(nodes, links, version=graph.version)


def _used(graph: LinkGraph, group: Sequence[int]) -> set[str]:
    """Names of the links between the ranks of ``group``."""
    return {name for a, b in permutations(group, 2) for name, _ in graph.route(a, b).parts}


def _divided(cost: LinkCost, count: int) -> LinkCost:
    return LinkCost(alpha_s=cost.alpha_s, bandwidth_bytes_per_s=cost.bandwidth_bytes_per_s / count)


def _renumbered(node: Node, place: dict[int, int]) -> Node:
    if node.rank is None:
        return node
    if node.rank in place:
        return replace(node, rank=place[node.rank])
    return Node(node.name, Kind.HOST)
