"""Measured pairs of nodes against the link graph: what it says about them, and what they say
about its links.

A pair is measured between two agents, so it sees the links *between* two nodes: those on the
path of their lowest ranks that are not inside a node. Inside are the links that a node's own
ranks use among themselves, and those between a rank and its host. If all ranks are of one node,
nothing is inside: they have measured each other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trainmesh.probe_types import CostFit, PairMeasure, is_ceiling
from trainmesh.topology.graph import Kind, Link, LinkGraph, Provenance
from trainmesh.types import LinkCost, PairTime

__all__ = ["PAIR_TOLERANCE", "Between", "expected", "not_tcp", "with_measures", "with_pair_times"]

ITERATIONS = 500
"""Of the fit; it stops earlier where it no longer changes."""
CLOSE = 1e-6
"""Alphas are found when no pair's ratio changes a link by more than this."""
LEAST_ALPHA_S = 1e-9
"""A nanosecond: no link is quicker, and a latency of 0 divides nothing."""
NOT_TCP = {"nccl": ("infiniband", "roce", "nvlink", "xgmi")}
"""By backend; NCCL's is RCCL's too."""
PAIR_TOLERANCE = 0.15
"""How far one message between two ranks may be off the bandwidth of its link: TCP's own bytes, and
the noise of a single sample."""
LEAST_TRANSFER_SHARE = 0.1
"""Of a message's time that is left to the transfer, whatever the latency was measured to be."""


class Between:
    """The links between the nodes of a job.

    Args:
        graph: The link graph.
        ranks: The ranks of each node.
    """

    def __init__(self, graph: LinkGraph, ranks: Mapping[str, Sequence[int]]) -> None:
        self._graph = graph
        self._first = {node: min(own) for node, own in ranks.items() if own}
        self._inside = _inside(graph, ranks) if len(ranks) > 1 else set()

    def path(self, src: str, dst: str) -> tuple[Link, ...]:
        """From node ``src`` to node ``dst``; empty where the graph doesn't know the nodes."""
        if src not in self._first or dst not in self._first:
            return ()
        return self.rank_path(self._first[src], self._first[dst])

    def rank_path(self, src: int, dst: int) -> tuple[Link, ...]:
        """From rank ``src`` to rank ``dst``, without what is inside a node."""
        whole = self._graph.path(src, dst)
        return tuple(link for link in whole if link.name not in self._inside)


def expected(path: Sequence[Link]) -> LinkCost | None:
    """What a graph says about one message over ``path``: the alphas add up, the narrowest link
    sets the bandwidth. None for an empty path."""
    if not path:
        return None
    return LinkCost(
        alpha_s=sum(link.cost.alpha_s for link in path),
        bandwidth_bytes_per_s=min(link.cost.bandwidth_bytes_per_s for link in path),
    )


def not_tcp(backend: str) -> tuple[str, ...]:
    """The link classes on which ``backend`` moves its bytes by other means than a probe's TCP."""
    return next((classes for name, classes in NOT_TCP.items() if name in backend), ())


def with_measures(
    graph: LinkGraph,
    ranks: Mapping[str, Sequence[int]],
    turns: Iterable[Sequence[PairMeasure]],
    *,
    except_classes: Collection[str] = (),
) -> LinkGraph:
    """The next version of ``graph``, in which what was measured counts.

    Bandwidth: a link can't be slower than the best pair that went over it, and it has not shown
    more than the sum of all pairs that went over it in one round (there is no such most where the
    agents were the limit). Only where the old value is out of these bounds, with the pairs' 95 %
    intervals added, the nearer bound takes its place: a link is changed no further than the
    measures force it to. Where they leave open which link of a path is slow, all of them are
    taken to be.

    Alpha: the alphas of a path add up to the pair's. Started from the old ones, each is
    multiplied by the geometric mean of measured / sum over its pairs until nothing changes,
    which is the simultaneous multiplicative algebraic reconstruction (SMART, Byrne 1993): of
    all solutions the one nearest to the start, or the best compromise if there is none.

    Args:
        graph: The graph in force.
        ranks: The ranks of each node.
        turns: The measured pairs of each round.
        except_classes: Link classes that the probe's TCP says nothing about.
    """
    between = Between(graph, ranks)
    flows = [flow for number, turn in enumerate(turns) for flow in _flows(turn, number, between)]
    return _with_flows(graph, flows, except_classes)


def with_pair_times(
    graph: LinkGraph,
    ranks: Mapping[str, Sequence[int]],
    pairs: Iterable[PairTime],
    *,
    except_classes: Collection[str] = (),
) -> LinkGraph:
    """The same from what the ranks themselves measured between two steps of training: one message
    each way, so a bandwidth within ``PAIR_TOLERANCE`` of the old one says nothing new."""
    between = Between(graph, ranks)
    flows = []
    for pair in pairs:
        path = between.rank_path(pair.src, pair.dst)
        if path and pair.transfer_s > 0:
            flows.append(_flow(pair.turn, path, _pair_fit(pair)))
    return _with_flows(graph, flows, except_classes)


def _with_flows(
    graph: LinkGraph, flows: Sequence[_Flow], except_classes: Collection[str]
) -> LinkGraph:
    flows = [flow for flow in flows if not flow.classes & set(except_classes)]
    over: dict[str, list[_Flow]] = defaultdict(list)
    for flow in flows:
        for name in flow.links:
            over[name].append(flow)
    alphas = _alphas({link.name: link.cost.alpha_s for link in graph.links}, flows)

    def changed(link: Link) -> Link:
        if link.name not in over:
            return link
        bandwidth = _bandwidth(link.cost.bandwidth_bytes_per_s, over[link.name])
        cost = LinkCost(alpha_s=alphas[link.name], bandwidth_bytes_per_s=bandwidth)
        return replace(link, cost=cost, provenance=Provenance.MEASURED)

    return LinkGraph(graph.nodes, map(changed, graph.links), version=graph.version + 1)


def _pair_fit(pair: PairTime) -> CostFit:
    transfer_s = max(pair.transfer_s - pair.latency_s, LEAST_TRANSFER_SHARE * pair.transfer_s)
    bandwidth = pair.nbytes / transfer_s
    return CostFit(
        cost=LinkCost(alpha_s=pair.latency_s, bandwidth_bytes_per_s=bandwidth),
        alpha_low_s=0.0,
        alpha_high_s=pair.transfer_s,
        bandwidth_low_bytes_per_s=bandwidth * (1 - PAIR_TOLERANCE),
        bandwidth_high_bytes_per_s=bandwidth * (1 + PAIR_TOLERANCE),
        num_samples=1,
        residual=0.0,
    )


@dataclass(frozen=True)
class _Flow:
    """One direction of one measured pair."""

    turn: int
    links: tuple[str, ...]
    classes: frozenset[str]
    fit: CostFit
    is_ceiling: bool


def _flows(measures: Sequence[PairMeasure], turn: int, between: Between) -> list[_Flow]:
    flows = []
    for measure in measures:
        for fit, src, dst in (
            (measure.forward, measure.src, measure.dst),
            (measure.backward, measure.dst, measure.src),
        ):
            path = between.path(src, dst)
            if fit is not None and path:
                flows.append(_flow(turn, path, fit, is_ceiling=is_ceiling(fit, measure)))
    return flows


def _flow(turn: int, path: Sequence[Link], fit: CostFit, *, is_ceiling: bool = False) -> _Flow:
    return _Flow(
        turn=turn,
        links=tuple(link.name for link in path),
        classes=frozenset(link.link_class for link in path),
        fit=fit,
        is_ceiling=is_ceiling,
    )


def _inside(graph: LinkGraph, ranks: Mapping[str, Sequence[int]]) -> set[str]:
    kinds = {node.name: node.kind for node in graph.nodes}
    inside = {
        link.name
        for link in graph.links
        if {kinds[link.src], kinds[link.dst]} == {Kind.RANK, Kind.HOST}
    }
    for own in ranks.values():
        for rank in own:
            if rank != min(own):
                for link in graph.path(min(own), rank):
                    inside |= {link.name, f"{link.dst}->{link.src}"}
    return inside


def _bandwidth(before: float, flows: Sequence[_Flow]) -> float:
    """The bandwidth of a link that ``flows`` went over, and that was ``before``."""
    best = max(flow.fit.cost.bandwidth_bytes_per_s for flow in flows)
    if before < max(flow.fit.bandwidth_low_bytes_per_s for flow in flows):
        return best
    most: dict[int, float] = defaultdict(float)
    surely: dict[int, float] = defaultdict(float)
    for flow in flows:
        most[flow.turn] += flow.fit.cost.bandwidth_bytes_per_s
        high = flow.fit.bandwidth_high_bytes_per_s
        surely[flow.turn] += math.inf if flow.is_ceiling else high
    return max(most.values()) if before > max(surely.values()) else before


def _alphas(before: Mapping[str, float], flows: Sequence[_Flow]) -> dict[str, float]:
    """The alpha of every link that a flow went over."""
    measured = [max(flow.fit.cost.alpha_s, LEAST_ALPHA_S) for flow in flows]
    over: dict[str, list[int]] = defaultdict(list)
    for number, flow in enumerate(flows):
        for name in flow.links:
            over[name].append(number)
    alphas = {
        # Nothing can be multiplied onto zero: there the links of a path begin alike.
        name: before[name] or min(measured[number] / len(flows[number].links) for number in own)
        for name, own in over.items()
    }
    for _ in range(ITERATIONS):
        ratios = [
            math.log(whole / sum(alphas[name] for name in flow.links))
            for whole, flow in zip(measured, flows, strict=True)
        ]
        steps = {name: fmean(ratios[number] for number in own) for name, own in over.items()}
        for name, step in steps.items():
            alphas[name] *= math.exp(step)
        if all(abs(step) < CLOSE for step in steps.values()):
            break
    return alphas
