"""Alpha-beta cost of a plan: what its messages load on which links, and how long that takes.

A plan runs as stages, one after the other. In a stage all flows run at once, in ``rounds``
rounds of one message each; the stage takes ``rounds * alpha`` of its longest path plus the
longest transfer of any link: bytes on the link / its bandwidth. Rings: Patarasuk and Yuan 2009;
hierarchical: BlueConnect (Cho et al., MLSys 2019), one level after the other as its executor
runs them. Flows take one path each: several equal paths (ECMP over spines) are not yet shared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainmesh.errors import PlanError
from trainmesh.topology.graph import Link, LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["Prediction", "Stage", "StageCost", "busbw_bytes_per_s", "predict", "stages"]


@dataclass(frozen=True)
class Stage:
    """``flows`` holds (source rank, destination rank, share of the bucket's bytes)."""

    rounds: int
    flows: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage on a graph; ``load`` is the share of the bucket that crosses the
    bottleneck ``link``, ``path`` the path with the largest alpha."""

    rounds: int
    path: tuple[Link, ...]
    link: Link
    load: float

    @property
    def latency_s(self) -> float:
        """Part of the time that does not depend on the bytes."""
        return self.rounds * sum(link.cost.alpha_s for link in self.path)

    def transfer_s(self, nbytes: float) -> float:
        """Part of the time for moving ``nbytes``."""
        return self.load * nbytes / self.link.cost.bandwidth_bytes_per_s


@dataclass(frozen=True)
class Prediction:
    """Predicted time of one all-reduce, and the links (one or more, equally loaded) that limit
    its slowest stage."""

    time_s: float
    stages: tuple[StageCost, ...]
    bottleneck: tuple[str, ...]

    @property
    def latency_s(self) -> float:
        """What is left of the time as the bucket gets small."""
        return sum(stage.latency_s for stage in self.stages)


def busbw_bytes_per_s(nbytes: float, time_s: float, world_size: int) -> float:
    """Bus bandwidth of an all-reduce as nccl-tests defines it: algbw * 2 (N - 1) / N."""
    return nbytes / time_s * 2 * (world_size - 1) / world_size


def stages(plan: Plan) -> tuple[Stage, ...]:
    """What a plan's messages are.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    if plan.algorithm in (Algorithm.NATIVE, Algorithm.RING):
        return (_ring([plan.order], 1.0, phases=2),)
    if plan.algorithm == Algorithm.HIERARCHICAL:
        return _hierarchical(plan.islands)
    raise PlanError(f"the messages of algorithm {plan.algorithm!r} are not known")


def predict(plan: Plan, graph: LinkGraph, nbytes: int) -> Prediction:
    """Time of one all-reduce of ``nbytes`` by ``plan`` on ``graph``.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    if plan.world_size == 1:
        return Prediction(0.0, (), ())
    costs, names = [], []
    for stage in stages(plan):
        if stage.flows:
            cost, bottleneck = _stage_cost(stage, graph)
            costs.append(cost)
            names.append(bottleneck)
    time_s = sum(cost.latency_s + cost.transfer_s(nbytes) for cost in costs)
    slowest = max(range(len(costs)), key=lambda index: costs[index].transfer_s(nbytes))
    return Prediction(time_s, tuple(costs), names[slowest])


def _stage_cost(stage: Stage, graph: LinkGraph) -> tuple[StageCost, tuple[str, ...]]:
    loads: dict[str, float] = defaultdict(float)
    longest: tuple[Link, ...] = ()
    longest_s = -1.0
    for src, dst, share in stage.flows:
        path = graph.path(src, dst)
        for link in path:
            loads[link.name] += share
        alpha_s = sum(link.cost.alpha_s for link in path)
        if alpha_s > longest_s:
            longest, longest_s = path, alpha_s
    seconds = {
        name: load / graph.link(name).cost.bandwidth_bytes_per_s for name, load in loads.items()
    }
    worst = max(seconds.values())
    bottleneck = tuple(sorted(n for n, s in seconds.items() if s >= worst * (1 - 1e-9)))
    link = graph.link(bottleneck[0])
    return StageCost(stage.rounds, longest, link, loads[link.name]), bottleneck


def _ring(rings: Sequence[Sequence[int]], share: float, *, phases: int) -> Stage:
    """Rings at once, each over ``share`` of the bucket; phases: 2 for all-reduce, 1 for a
    reduce-scatter or an all-gather."""
    flows: list[tuple[int, int, float]] = []
    rounds = 0
    for ring in rings:
        size = len(ring)
        if size > 1:
            rounds = max(rounds, phases * (size - 1))
            per_hop = phases * (size - 1) / size * share
            flows += [(src, ring[(i + 1) % size], per_hop) for i, src in enumerate(ring)]
    return Stage(rounds, tuple(flows))


def _hierarchical(islands: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    sizes = {len(island) for island in islands}
    if len(sizes) == 1:
        size = sizes.pop()
        inside = _ring(islands, 1.0, phases=1)
        across = [[island[place] for island in islands] for place in range(size)]
        return inside, _ring(across, 1.0 / size, phases=2), inside
    leaders = _ring([[island[0] for island in islands]], 1.0, phases=2)
    return *_to_leaders(islands), leaders, *_from_leaders(islands)


def _to_leaders(islands: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """Gloo's reduce: a ring reduce-scatter, then each rank sends its part to the leader."""
    parts = [(rank, island[0], 1.0 / len(island)) for island in islands for rank in island[1:]]
    return _ring(islands, 1.0, phases=1), Stage(1, tuple(parts))


def _from_leaders(islands: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """Gloo's broadcast: a binomial tree, whose places below 2^i send to place + 2^i in round i."""
    rounds: list[Stage] = []
    have, largest = 1, max(map(len, islands))
    while have < largest:
        flows = [
            (island[place], island[place + have], 1.0)
            for island in islands
            for place in range(min(have, len(island) - have))
        ]
        rounds.append(Stage(1, tuple(flows)))
        have *= 2
    return tuple(rounds)
