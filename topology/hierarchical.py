"""hierarchical: reduce-scatter inside islands, all-reduce across, all-gather inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import networkx as nx

from trainmesh.topology.cost import predict
from trainmesh.topology.graph import Kind, LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["islands", "plan"]

Islands = tuple[tuple[int, ...], ...]


def plan(graph: LinkGraph, nbytes: int) -> Plan | None:
    """The best of the divisions that the graph suggests; None if it suggests none."""
    plans = [
        Plan(
            algorithm=Algorithm.HIERARCHICAL,
            world_size=graph.world_size,
            order=tuple(range(graph.world_size)),
            islands=division,
            nbytes=nbytes,
        )
        for division in islands(graph)
    ]
    return min(plans, key=lambda p: (predict(p, graph, nbytes).time_s, p.islands), default=None)


def islands(graph: LinkGraph) -> list[Islands]:
    """Divisions of the ranks into at least two islands, at least one with two ranks: ranks that
    share their nearest switch, and ranks joined by paths of at least each bandwidth there is."""
    divisions = {_by_switch(graph)}
    bandwidths = {link.cost.bandwidth_bytes_per_s for link in graph.links}
    for least in sorted(bandwidths):
        divisions.add(_by_bandwidth(graph, least))
    return sorted(d for d in divisions if 1 < len(d) < graph.world_size)


def _by_switch(graph: LinkGraph) -> Islands:
    kinds = {node.name: node.kind for node in graph.nodes}
    neighbours: dict[str, list[str]] = defaultdict(list)
    for link in graph.links:
        if kinds[link.src] is Kind.RANK and kinds[link.dst] is not Kind.RANK:
            neighbours[link.src].append(link.dst)

    def home(rank: int) -> str:
        name = graph.rank_node(rank)
        return min(neighbours[name], default=name)

    return _group(graph.world_size, home)


def _by_bandwidth(graph: LinkGraph, least_bytes_per_s: float) -> Islands:
    joined: nx.Graph[str] = nx.Graph()
    joined.add_nodes_from(node.name for node in graph.nodes)
    for link in graph.links:
        if link.cost.bandwidth_bytes_per_s >= least_bytes_per_s:
            joined.add_edge(link.src, link.dst)
    component: dict[str, int] = {}
    for number, names in enumerate(_components(joined)):
        component.update(dict.fromkeys(names, number))
    return _group(graph.world_size, lambda rank: component[graph.rank_node(rank)])


def _components(graph: nx.Graph[str]) -> Iterator[set[str]]:
    yield from nx.connected_components(graph)


def _group(world_size: int, key: Callable[[int], object]) -> Islands:
    groups: dict[object, list[int]] = defaultdict(list)
    for rank in range(world_size):
        groups[key(rank)].append(rank)
    return tuple(sorted(tuple(ranks) for ranks in groups.values()))
