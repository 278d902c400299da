"""hierarchical: reduce-scatter inside islands, all-reduce across, all-gather inside; any number
of levels (BlueConnect: Cho et al., MLSys 2019)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from trainmesh.plan.schedule import dimensions
from trainmesh.plan.stages import Flow
from trainmesh.topology.clusters import clustered_ranks, divisions
from trainmesh.topology.cost import busiest, link_loads, predict
from trainmesh.topology.graph import Kind, LinkGraph
from trainmesh.topology.indexed import Indexed
from trainmesh.topology.planners.ring import best_order
from trainmesh.topology.request import PlanRequest
from trainmesh.topology.routes import natural
from trainmesh.types import Algorithm, Collective, Plan

__all__ = ["islands", "plan", "why_not"]

Islands = tuple[tuple[int, ...], ...]
MAX_PREDICTED = 12
"""Divisions and chains of them that are compared."""
MAX_SEARCHED = 32
"""Ranks up to which the order of the islands is that of the best ring."""
MAX_PLACES = 32
"""Ranks of an island that exchange unequal shares: each sends to each."""
NEARLY = 0.99
"""Places whose speeds differ by less have equal shares."""
SEVERAL = 3
"""Islands from which on their order matters."""


def why_not(graph: LinkGraph, request: PlanRequest) -> str | None:
    """Why the graph suggests no islands; None if it suggests some."""
    if _divisions(graph, request):
        return None
    if graph.world_size == 1:
        return "one rank has nobody to share an island with"
    equal = "" if request.collective == Collective.ALLREDUCE else " equal"
    return (
        f"the links divide the {graph.world_size} ranks into no{equal} islands that are faster "
        "inside than between them"
    )


def plan(graph: LinkGraph, request: PlanRequest) -> Plan | None:
    """The best of the divisions that the graph suggests; None if it suggests none."""
    found = _divisions(graph, request)
    chains: list[tuple[Islands, ...]] = [(division,) for division in found]
    chains += _nested(found, request.executors.max_levels)
    if any(len(division) > SEVERAL for division in found):
        place = {rank: i for i, rank in enumerate(_ring_order(graph))}
        chains += [_around(chain, place) for chain in chains]
    by_rail = _by_rail(graph)
    aligned = [tuple(_aligned(division, by_rail) for division in chain) for chain in chains]
    candidates = list(dict.fromkeys([*chains, *aligned]))[:MAX_PREDICTED]
    plans = [_as_plan(chain, graph, request) for chain in candidates]
    plans.sort(key=lambda plan: (predict(plan, graph, request.nbytes), plan.islands))
    if request.executors.unequal_places and request.collective == Collective.ALLREDUCE:
        plans += _weighted(plans, graph)
    return min(plans, key=lambda plan: predict(plan, graph, request.nbytes), default=None)


def islands(graph: LinkGraph) -> list[Islands]:
    """Divisions of the ranks into at least two islands, at least one with two ranks. Those into
    equal islands come first, then those into few."""
    indexed = Indexed.of(graph)
    rank_of = {node: rank for rank, node in enumerate(indexed.ranks)}
    found = set()
    for groups in divisions(indexed):
        division = (sorted(rank_of[node] for node in group & rank_of.keys()) for group in groups)
        found.add(tuple(sorted(tuple(ranks) for ranks in division)))
    useful = [d for d in found if 1 < len(d) < graph.world_size]
    return sorted(useful, key=lambda d: (not _is_equal(d), len(d), d))


def _divisions(graph: LinkGraph, request: PlanRequest) -> list[Islands]:
    found = islands(graph)
    if request.collective == Collective.ALLREDUCE:
        return found
    return [division for division in found if _is_equal(division)]


def _as_plan(levels: tuple[Islands, ...], graph: LinkGraph, request: PlanRequest) -> Plan:
    return Plan(
        algorithm=Algorithm.HIERARCHICAL,
        world_size=graph.world_size,
        order=tuple(range(graph.world_size)),
        islands=levels[0],
        levels=levels if len(levels) > 1 else (),
        collective=request.collective,
        nbytes=request.nbytes,
        num_chunks=0 if request.executors.pipelined else 1,
    )


def _weighted(plans: Sequence[Plan], graph: LinkGraph) -> list[Plan]:
    """Of the first that has small equal islands: if its places are unequally fast outside them,
    the same with shares in proportion. A slow NIC then has less to carry."""
    for plan in plans:
        if _is_equal(plan.islands) and 1 < len(plan.islands[0]) <= MAX_PLACES:
            speeds = _place_speeds(plan, graph)
            if min(speeds) >= NEARLY * max(speeds):
                return []
            return [replace(plan, shares=tuple(speed / sum(speeds) for speed in speeds))]
    return []


def _place_speeds(plan: Plan, graph: LinkGraph) -> list[float]:
    """Bytes/s of each place's rings, one place alone."""
    _, *outer = dimensions(plan.levels or (plan.islands,))
    place = {rank: number for island in plan.islands for number, rank in enumerate(island)}
    flows: list[list[Flow]] = [[] for _ in plan.islands[0]]
    for rings in outer:
        for ring in rings:
            around = zip(ring, (*ring[1:], ring[0]), strict=True)
            flows[place[ring[0]]] += [Flow(a, b, 1.0) for a, b in around if a != b]
    return [1 / busiest(link_loads(own, graph), graph)[0] for own in flows]


def _is_equal(division: Islands) -> bool:
    return len({len(island) for island in division}) == 1


def _nested(found: Sequence[Islands], max_levels: int) -> list[tuple[Islands, ...]]:
    """Chains of at least two divisions into equal islands, each of unions of those before; for
    each outermost division the longest."""
    equal = sorted((d for d in found if _is_equal(d)), key=lambda d: -len(d))
    longest: dict[Islands, tuple[Islands, ...]] = {}
    for outer in equal:
        home = {rank: number for number, island in enumerate(outer) for rank in island}
        inside = [
            chain
            for inner, chain in longest.items()
            if len(inner) > len(outer)
            and all(len({home[rank] for rank in island}) == 1 for island in inner)
        ]
        longest[outer] = (*max(inside, key=len, default=()), outer)
    return [chain[-max_levels:] for chain in longest.values() if len(chain[-max_levels:]) > 1]


def _ring_order(graph: LinkGraph) -> Sequence[int]:
    if graph.world_size <= MAX_SEARCHED:
        return best_order(graph)
    return clustered_ranks(Indexed.of(graph))


def _around(chain: tuple[Islands, ...], place: Mapping[int, int]) -> tuple[Islands, ...]:
    """The islands in the order in which the best ring through all ranks first meets them: theirs
    is the order of the ring across."""
    return tuple(
        tuple(sorted(division, key=lambda island: min(place[rank] for rank in island)))
        for division in chain
    )


def _by_rail(graph: LinkGraph) -> dict[int, tuple[object, ...]]:
    """Sorts the ranks of an island by the switches that they are joined to: those of one rail are
    then at one place of all islands."""
    kinds = {node.name: node.kind for node in graph.nodes}
    switches: dict[str, list[str]] = defaultdict(list)
    for link in graph.links:
        if kinds[link.src] is Kind.RANK and kinds[link.dst] is not Kind.RANK:
            switches[link.src].append(link.dst)
    return {
        rank: (sorted(map(natural, switches[graph.rank_node(rank)])), rank)
        for rank in range(graph.world_size)
    }


def _aligned(division: Islands, by_rail: Mapping[int, tuple[object, ...]]) -> Islands:
    return tuple(tuple(sorted(island, key=lambda rank: by_rail[rank])) for island in division)
