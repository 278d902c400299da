"""hierarchical: reduce-scatter inside islands, all-reduce across, all-gather inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import networkx as nx

from trainmesh.topology import ring
from trainmesh.topology.cost import predict
from trainmesh.topology.graph import Kind, LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["islands", "plan"]

MAX_DIVISIONS = 16
"""Divisions that are compared; links of many different speeds would suggest very many."""

Islands = tuple[tuple[int, ...], ...]


def plan(graph: LinkGraph, nbytes: int) -> Plan | None:
    """The best of the divisions that the graph suggests; None if it suggests none."""
    divisions = islands(graph)
    if any(len(division) > 3 for division in divisions):
        divisions += [_around(division, graph) for division in divisions]
    plans = [
        Plan(
            algorithm=Algorithm.HIERARCHICAL,
            world_size=graph.world_size,
            order=tuple(range(graph.world_size)),
            islands=division,
            nbytes=nbytes,
        )
        for division in divisions
    ]
    return min(plans, key=lambda p: (predict(p, graph, nbytes).time_s, p.islands), default=None)


def islands(graph: LinkGraph) -> list[Islands]:
    """Divisions of the ranks into at least two islands, at least one with two ranks: ranks that
    share their nearest switch, and ranks joined by links of at least each bandwidth there is.
    Those into equal islands come first, then those into few."""
    divisions = {_by_switch(graph), *_by_bandwidth(graph)}
    useful = [d for d in divisions if 1 < len(d) < graph.world_size]
    useful.sort(key=lambda d: (len(set(map(len, d))) > 1, len(d), d))
    return useful[:MAX_DIVISIONS]


def _around(division: Islands, graph: LinkGraph) -> Islands:
    """The islands in the order in which the best ring through all ranks first meets them: theirs
    is the order of the ring across."""
    best = ring.plan(graph, 1)
    place = {rank: i for i, rank in enumerate(best.order)} if best is not None else {}
    return tuple(sorted(division, key=lambda island: min(place.get(rank, 0) for rank in island)))


def _by_switch(graph: LinkGraph) -> Islands:
    """Ranks by the switch that they reach over their fastest link."""
    kinds = {node.name: node.kind for node in graph.nodes}
    nearest: dict[str, tuple[float, str]] = {}
    for link in graph.links:
        if kinds[link.src] is Kind.RANK and kinds[link.dst] is not Kind.RANK:
            found = (-link.cost.bandwidth_bytes_per_s, link.dst)
            nearest[link.src] = min(found, nearest.get(link.src, found))

    def home(rank: int) -> str:
        name = graph.rank_node(rank)
        return nearest[name][1] if name in nearest else name

    return _group(graph.world_size, home)


def _by_bandwidth(graph: LinkGraph) -> set[Islands]:
    """What stays joined if all links slower than some bandwidth are left out. Only the links of
    a maximum spanning tree matter for that."""
    joined: nx.Graph[str] = nx.Graph()
    joined.add_nodes_from(node.name for node in graph.nodes)
    for link in graph.links:
        known = joined.get_edge_data(link.src, link.dst, {"speed": 0.0})
        speed = max(known["speed"], link.cost.bandwidth_bytes_per_s)
        joined.add_edge(link.src, link.dst, speed=speed)
    tree = nx.maximum_spanning_tree(joined, weight="speed")
    by_speed: dict[float, list[tuple[str, str]]] = defaultdict(list)
    for a, b, edge in tree.edges(data=True):
        by_speed[edge["speed"]].append((a, b))
    divisions = set()
    for speed in sorted(by_speed):
        tree.remove_edges_from(by_speed[speed])
        divisions.add(_by_component(tree, graph))
    return divisions


def _by_component(joined: nx.Graph[str], graph: LinkGraph) -> Islands:
    component: dict[str, int] = {}
    for number, names in enumerate(nx.connected_components(joined)):
        component.update(dict.fromkeys(names, number))
    return _group(graph.world_size, lambda rank: component[graph.rank_node(rank)])


def _group(world_size: int, key: Callable[[int], object]) -> Islands:
    groups: dict[object, list[int]] = defaultdict(list)
    for rank in range(world_size):
        groups[key(rank)].append(rank)
    return tuple(sorted(tuple(ranks) for ranks in groups.values()))
