"""Alpha-beta cost of a plan: how its messages load the links, and how long that takes.

A plan runs in stages. In a stage all flows run at once, in ``rounds`` rounds of one message each:
it takes ``rounds * alpha`` of its longest route and, on its busiest link, bytes / bandwidth.
Stages run one after the other, or, where the plan is cut into c chunks, at once on different
chunks: then only what one link carries in all of them adds up,
``T(c) = sum of latencies + T_bw + (sum of transfers - T_bw) / c + (c - 1) * longest latency``
with ``T_bw`` the time of the busiest link over all stages; for a tree this is the usual
``(depth + c - 1) (alpha + M / (c B))``. Rings: Patarasuk and Yuan 2009; hierarchical: BlueConnect
(Cho et al., MLSys 2019).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from trainmesh.errors import PlanError
from trainmesh.plan.schedule import dimensions
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.routes import Route
from trainmesh.types import Algorithm, Collective, Hop, Plan

__all__ = [
    "Flow",
    "PlanCost",
    "Prediction",
    "Stage",
    "StageCost",
    "busiest",
    "busbw_bytes_per_s",
    "link_loads",
    "plan_cost",
    "predict",
    "stages",
]

MAX_CHUNKS = 65_536
"""Of a pipeline: far beyond what latency leaves worth while."""


class Flow(NamedTuple):
    """``share`` of the bytes goes from rank ``src`` to rank ``dst`` (over ``via`` if it is set)."""

    src: int
    dst: int
    share: float
    via: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Stage:
    """Flows that run at once, in ``rounds`` messages each."""

    rounds: int
    flows: tuple[Flow, ...]


@dataclass(frozen=True)
class StageCost:
    """``load``: the share of the bytes that crosses the stage's busiest ``link``, whose bandwidth
    is ``bandwidth_bytes_per_s``. ``alpha_s``: latency of the longest route, which is that from
    the first to the second of the ranks ``farthest``."""

    rounds: int
    alpha_s: float
    farthest: tuple[int, int]
    link: str
    load: float
    bandwidth_bytes_per_s: float

    @property
    def latency_s(self) -> float:
        """Part of the time that does not depend on the bytes."""
        return self.rounds * self.alpha_s

    def transfer_s(self, nbytes: float) -> float:
        """Part of the time for moving ``nbytes``."""
        return self.load * nbytes / self.bandwidth_bytes_per_s


class Prediction(NamedTuple):
    """Predicted time, and the number of chunks that gives it (0: no limit)."""

    time_s: float
    num_chunks: int


@dataclass(frozen=True)
class PlanCost:
    """What a plan costs on a graph, for any number of bytes.

    ``bottleneck`` names the links (one or more, equally busy) that limit it: those of the slowest
    stage, or, if it is ``pipelined``, those that are busiest over all stages.
    """

    stages: tuple[StageCost, ...]
    busiest_s_per_byte: float
    bottleneck: tuple[str, ...]
    loads: Mapping[str, float]
    pipelined: bool

    @property
    def latency_s(self) -> float:
        """What is left of the time as the bucket gets small."""
        return sum(stage.latency_s for stage in self.stages)

    def predict(self, nbytes: int) -> Prediction:
        """Time for ``nbytes``, cut into the best number of chunks if the plan is pipelined."""
        apart_s = sum(stage.transfer_s(nbytes) for stage in self.stages)
        if not self.pipelined:
            return Prediction(self.latency_s + apart_s, 1)
        together_s = min(apart_s, self.busiest_s_per_byte * nbytes)
        longest_s = max((stage.latency_s for stage in self.stages), default=0.0)
        if longest_s == 0:
            return Prediction(together_s, 0)

        def seconds(chunks: int) -> float:
            ramp_s = (apart_s - together_s) / chunks
            return self.latency_s + together_s + ramp_s + (chunks - 1) * longest_s

        best = math.sqrt((apart_s - together_s) / longest_s)
        around = {max(1, min(MAX_CHUNKS, n)) for n in (math.floor(best), math.ceil(best))}
        chunks = min(around, key=lambda n: (seconds(n), n))
        return Prediction(seconds(chunks), chunks)


def busbw_bytes_per_s(
    nbytes: float, time_s: float, world_size: int, collective: Collective = Collective.ALLREDUCE
) -> float:
    """Bus bandwidth as nccl-tests defines it: algbw * 2 (N - 1) / N of an all-reduce, half of it
    of the others."""
    passes = 2 if collective == Collective.ALLREDUCE else 1
    return nbytes / time_s * passes * (world_size - 1) / world_size


def predict(plan: Plan, graph: LinkGraph, nbytes: int) -> float:
    """Seconds that ``plan`` takes for ``nbytes`` on ``graph``.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    return plan_cost(plan, graph).predict(nbytes).time_s


@lru_cache(maxsize=16)
def plan_cost(plan: Plan, graph: LinkGraph, message_s: float = 0.0) -> PlanCost:
    """The cost of ``plan`` on ``graph``; pipelined unless the plan has one chunk.

    ``message_s``: the executor's own time for each message, if it is not the backend's.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    costs: list[StageCost] = []
    slowest: tuple[float, tuple[str, ...]] = (-1.0, ())
    total: dict[str, float] = defaultdict(float)
    own_s = 0.0 if _is_backends(plan) else message_s
    for stage in stages(plan):
        if stage.flows:
            cost, loads, links = _stage_cost(stage, graph, own_s)
            costs.append(cost)
            slowest = max(slowest, (cost.transfer_s(1.0), links), key=lambda item: item[0])
            for name, load in loads.items():
                total[name] += load
    busiest_s, names = busiest(total, graph)
    pipelined = plan.num_chunks != 1 and len(costs) > 1
    links = names if pipelined else slowest[1]
    return PlanCost(tuple(costs), busiest_s, links, total, pipelined)


def link_loads(flows: Iterable[Flow], graph: LinkGraph) -> dict[str, float]:
    """The share of the bytes that crosses each link."""
    return _loads((flow, _route(flow, graph)) for flow in flows)


def _route(flow: Flow, graph: LinkGraph) -> Route:
    return graph.route(flow.src, flow.dst, flow.via)


def _loads(flows: Iterable[tuple[Flow, Route]]) -> dict[str, float]:
    loads: dict[str, float] = defaultdict(float)
    for flow, route in flows:
        for name, part in route.parts:
            loads[name] += flow.share * part
    return loads


def busiest(loads: Mapping[str, float], graph: LinkGraph) -> tuple[float, tuple[str, ...]]:
    """Seconds per byte on the link that is busy for longest, and the links that are."""
    seconds = {
        name: load / graph.link(name).cost.bandwidth_bytes_per_s for name, load in loads.items()
    }
    worst = max(seconds.values(), default=0.0)
    return worst, tuple(sorted(n for n, s in seconds.items() if s >= worst * (1 - 1e-9)))


def _is_backends(plan: Plan) -> bool:
    """Whether the backend carries it out by itself."""
    return plan.algorithm == Algorithm.NATIVE or (
        plan.algorithm == Algorithm.RING and not plan.rings
    )


def _stage_cost(
    stage: Stage, graph: LinkGraph, own_s: float
) -> tuple[StageCost, dict[str, float], tuple[str, ...]]:
    routed = [(flow, _route(flow, graph)) for flow in stage.flows]
    loads = _loads(routed)
    far, longest = max(routed, key=lambda item: item[1].alpha_s)
    _, links = busiest(loads, graph)
    cost = StageCost(
        rounds=stage.rounds,
        alpha_s=longest.alpha_s + own_s,
        farthest=(far.src, far.dst),
        link=links[0],
        load=loads[links[0]],
        bandwidth_bytes_per_s=graph.link(links[0]).cost.bandwidth_bytes_per_s,
    )
    return cost, loads, links


def stages(plan: Plan) -> tuple[Stage, ...]:
    """The messages of a plan.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    if plan.world_size == 1:
        return ()
    if plan.algorithm in (Algorithm.NATIVE, Algorithm.RING):
        return (_rings(plan),)
    if plan.algorithm == Algorithm.HIERARCHICAL:
        return _hierarchical(plan)
    if plan.algorithm == Algorithm.SHARDED:
        return _sharded(plan.shares)
    if plan.algorithm in (Algorithm.TREE, Algorithm.FOREST):
        return _trees(plan)
    raise PlanError(f"the messages of algorithm {plan.algorithm!r} are not known")


def _rings(plan: Plan) -> Stage:
    phases = 2 if plan.collective == Collective.ALLREDUCE else 1
    rings = plan.rings or (plan.order,)
    shares = plan.shares if plan.rings else (1.0,)
    flows = [
        flow
        for ring, share in zip(rings, shares, strict=True)
        for flow in _ring([ring], share, phases=phases).flows
    ]
    return Stage(phases * (plan.world_size - 1), tuple(flows))


def _ring(rings: Sequence[Sequence[int]], share: float, *, phases: int) -> Stage:
    """Rings at once, each over ``share`` of the bytes; phases: 2 for all-reduce, 1 for a
    reduce-scatter or an all-gather."""
    flows: list[Flow] = []
    rounds = 0
    for ring in rings:
        size = len(ring)
        if size > 1:
            rounds = max(rounds, phases * (size - 1))
            per_hop = phases * (size - 1) / size * share
            flows += [Flow(src, ring[(i + 1) % size], per_hop) for i, src in enumerate(ring)]
    return Stage(rounds, tuple(flows))


def _hierarchical(plan: Plan) -> tuple[Stage, ...]:
    levels = plan.levels or (plan.islands,)
    if len({len(island) for island in plan.islands}) != 1:
        return _led(plan.islands)
    rings_inwards = dimensions(levels)
    if plan.shares:
        return _by_place(plan, rings_inwards)
    inwards: list[Stage] = []
    share = 1.0
    for rings in rings_inwards:
        inwards.append(_ring(rings, share, phases=1))
        share /= len(rings[0])
    if plan.collective == Collective.REDUCE_SCATTER:
        return tuple(inwards)
    if plan.collective == Collective.ALLGATHER:
        return tuple(reversed(inwards))
    *inside, across = inwards
    both = tuple(flow._replace(share=2 * flow.share) for flow in across.flows)
    return (*inside, Stage(2 * across.rounds, both), *reversed(inside))


def _by_place(
    plan: Plan, dimensions_inwards: Sequence[Sequence[Sequence[int]]]
) -> tuple[Stage, ...]:
    """With unequal shares, the ranks of an island exchange them directly; each place then has
    rings of its own."""
    islands, *outer = dimensions_inwards
    place = {rank: number for island in islands for number, rank in enumerate(island)}
    to_owner = [
        Flow(a, b, plan.shares[place[b]])
        for island in islands
        for a in island
        for b in island
        if a != b and plan.shares[place[b]]
    ]
    back = tuple(Flow(b, a, share) for a, b, share, _ in to_owner)
    rounds = len(islands[0]) - 1
    inwards = [Stage(rounds, tuple(to_owner))]
    parts = 1
    for rings in outer:
        flows = _ring(rings, 1 / parts, phases=1)
        own = (
            flow._replace(share=flow.share * plan.shares[place[flow.src]]) for flow in flows.flows
        )
        inwards.append(Stage(flows.rounds, tuple(own)))
        parts *= len(rings[0])
    *inside, across = inwards
    both = tuple(flow._replace(share=2 * flow.share) for flow in across.flows)
    outwards = [*reversed(inside[1:]), Stage(rounds, back)]
    return (*inside, Stage(2 * across.rounds, both), *outwards)


def _led(islands: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """Along a chain to each leader, one hop of every island at a time; around them; and back."""
    hops = [
        [(island[place], island[place + 1]) for island in islands if place + 1 < len(island)]
        for place in range(max(map(len, islands)) - 1)
    ]
    outwards = [Stage(1, tuple(Flow(a, b, 1.0) for a, b in pairs)) for pairs in hops]
    inwards = [Stage(1, tuple(Flow(b, a, 1.0) for a, b in pairs)) for pairs in reversed(hops)]
    leaders = _ring([[island[0] for island in islands]], 1.0, phases=2)
    return (*inwards, leaders, *outwards)


def _sharded(shares: Sequence[float]) -> tuple[Stage, Stage]:
    """All ranks send each rank its shard, then each rank sends its shard to all. A rank sends its
    messages one after the other."""
    ranks = range(len(shares))
    to_owner = [Flow(a, b, shares[b]) for a in ranks for b in ranks if a != b and shares[b]]
    back = tuple(Flow(b, a, share) for a, b, share, _ in to_owner)
    return Stage(len(shares) - 1, tuple(to_owner)), Stage(len(shares) - 1, back)


def _trees(plan: Plan) -> tuple[Stage, ...]:
    """Hops that can run at once, by their distance from the leaves and then from the root. A
    single tree leaves links idle meanwhile: there a rank's hops are a step each."""
    up: dict[int, list[Flow]] = defaultdict(list)
    down: dict[int, list[Flow]] = defaultdict(list)
    alone = len(plan.trees) == 1
    for tree in plan.trees:
        for hops, found in ((tree.up, up), (tree.down, down)):
            for hop, step in zip(hops, _steps(hops, alone=alone), strict=True):
                found[step].append(Flow(hop.src, hop.dst, tree.share, hop.via))
    return tuple(
        Stage(_most_messages(found[step]), tuple(found[step]))
        for found in (up, down)
        for step in sorted(found)
    )


def _steps(hops: Sequence[Hop], *, alone: bool) -> list[int]:
    """The step at which each hop can run: after the last hop that brings the bytes it sends; if
    ``alone``, also after the other hops of its ranks."""
    ready: dict[int, int] = defaultdict(int)
    sent: dict[int, int] = defaultdict(int)
    steps = []
    for hop in hops:
        step = max(ready[hop.src], sent[hop.src], ready[hop.dst]) if alone else ready[hop.src]
        sent[hop.src] = step + 1
        ready[hop.dst] = max(ready[hop.dst], step + 1)
        steps.append(step)
    return steps


def _most_messages(flows: Sequence[Flow]) -> int:
    """The most messages that one rank sends or receives; they leave, or arrive, one after the
    other."""
    sent, received = Counter(flow.src for flow in flows), Counter(flow.dst for flow in flows)
    return max(*sent.values(), *received.values())
