"""Which one change of hardware would raise the bound most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

from msgspec.structs import replace as replaced

from trainmesh.topology.bounds import Bound, bound
from trainmesh.topology.graph import Link, LinkGraph
from trainmesh.types import Collective

__all__ = ["Advice", "advice"]

MAX_RANKS = 64
"""Above, trying changes takes longer than planning."""
MAX_TRIED = 6
"""Groups of slow links whose change is worked out: each takes a bound of its own."""
REFERENCE_BYTES = 10**9
"""So large that bandwidth alone counts."""
WORTH = 1.01
"""A bound that rises by less is not worth the words."""


@dataclass(frozen=True)
class Advice:
    """``links`` at ``bandwidth_bytes_per_s`` each would make the bound ``times`` as fast."""

    links: tuple[str, ...]
    bandwidth_bytes_per_s: float
    times: float


def advice(graph: LinkGraph, least: Bound, collective: Collective) -> Advice | None:
    """The best of: each slow link as fast as others between nodes of these kinds, the links that
    limit twice as fast, and these and all like them. None if nothing helps, or above 64 ranks."""
    if not 1 < graph.world_size <= MAX_RANKS:
        return None
    best: Advice | None = None
    for links, bandwidth in _changes(graph, least):
        after = bound(_with(graph, links, bandwidth), REFERENCE_BYTES, collective)
        times = bound(graph, REFERENCE_BYTES, collective).time_s / after.time_s
        if times > (best.times * (1 + 1e-6) if best else WORTH):
            best = Advice(tuple(links), bandwidth, times)
    return best


def _changes(graph: LinkGraph, least: Bound) -> Iterable[tuple[list[str], float]]:
    """Few links before many: at the same gain, those are advised."""
    opposite = {link.name: f"{link.dst}->{link.src}" for link in graph.links}
    known = set(opposite)
    kinds = {node.name: node.kind for node in graph.nodes}
    peers: dict[tuple[object, ...], list[Link]] = defaultdict(list)
    for link in graph.links:
        peers[kinds[link.src], kinds[link.dst], link.link_class].append(link)
    slow: dict[frozenset[str], float] = {}
    for alike in peers.values():
        usual = median(link.cost.bandwidth_bytes_per_s for link in alike)
        for link in alike:
            if link.cost.bandwidth_bytes_per_s < usual:
                both = frozenset({link.name, opposite[link.name]} & known)
                slow[both] = max(usual, slow.get(both, 0.0))
    for links, bandwidth in list(slow.items())[:MAX_TRIED]:
        yield sorted(links), bandwidth
    limiting = {*least.links, *(opposite[name] for name in least.links)} & known
    if not limiting:
        return
    slowest = min(graph.link(name).cost.bandwidth_bytes_per_s for name in limiting)
    yield sorted(limiting), 2 * slowest
    sorts = {
        (kinds[link.src], kinds[link.dst], link.cost.bandwidth_bytes_per_s)
        for link in map(graph.link, limiting)
    }
    same = [
        link.name
        for link in graph.links
        if (kinds[link.src], kinds[link.dst], link.cost.bandwidth_bytes_per_s) in sorts
    ]
    yield same, 2 * slowest


def _with(graph: LinkGraph, names: Iterable[str], bandwidth: float) -> LinkGraph:
    changed = set(names)

    def faster(link: Link) -> Link:
        if link.name not in changed or link.cost.bandwidth_bytes_per_s >= bandwidth:
            return link
        return replace(link, cost=replaced(link.cost, bandwidth_bytes_per_s=bandwidth))

    return LinkGraph(graph.nodes, map(faster, graph.links), version=graph.version)
