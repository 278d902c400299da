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
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from trainmesh.plan.kind import PlanKind, kind_of
from trainmesh.plan.schedule import stages
from trainmesh.plan.stages import Flow, Stage
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.routes import Route
from trainmesh.types import Collective, Plan

__all__ = [
    "PlanCost",
    "Prediction",
    "StageCost",
    "busiest",
    "busbw_bytes_per_s",
    "link_loads",
    "plan_cost",
    "predict",
]

MAX_CHUNKS = 65_536
"""Of a pipeline: far beyond what latency leaves worth while."""


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
    own_s = 0.0 if kind_of(plan) == PlanKind.ORDER else message_s
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
