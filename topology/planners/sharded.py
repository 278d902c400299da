"""sharded(w): rank i reduces and sends out the share w_i of the bytes, directly to all others.

The optimum for unequal NICs B_i behind one switch: T* = max(M / min B, 2 (N - 1) M / sum B). Each
way, rank i moves M (1 + (N - 2) w_i), so any w_i <= (T* B_i / M - 1) / (N - 2) with sum 1 reaches
it where the two stages overlap. The same shares follow from hivemind's linear programme (2021);
OptCC (arXiv 2606.01680) has the bound for one slow rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Algorithm, Collective, Plan

__all__ = ["plan", "shares", "why_not"]

MIN_RANKS, MAX_RANKS = 3, 64
"""Everyone sends to everyone: N (N - 1) flows, each with N - 1 messages' latency."""


def why_not(graph: LinkGraph, request: PlanRequest) -> str | None:
    """Why there are no shares to choose; None if there are."""
    if request.collective != Collective.ALLREDUCE:
        return f"it is for allreduce only, not for {request.collective}"
    if not MIN_RANKS <= graph.world_size <= MAX_RANKS:
        return f"it is for {MIN_RANKS} to {MAX_RANKS} ranks, not for {graph.world_size}"
    return None


def plan(graph: LinkGraph, request: PlanRequest) -> Plan | None:
    """For an all-reduce of 3 to 64 ranks; None else."""
    if why_not(graph, request) is not None:
        return None
    return Plan(
        algorithm=Algorithm.SHARDED,
        world_size=graph.world_size,
        order=tuple(range(graph.world_size)),
        shares=shares(_access_bytes_per_s(graph)),
        nbytes=request.nbytes,
        num_chunks=0 if request.executors.pipelined else 1,
    )


def shares(bandwidths: Sequence[float]) -> tuple[float, ...]:
    """The share of each rank, by its bandwidth to and from the switch (any unit); at least three
    ranks. They add up to 1."""
    count = len(bandwidths)
    seconds = max(1 / min(bandwidths), 2 * (count - 1) / sum(bandwidths))
    most = [min(1.0, max(0.0, (seconds * b - 1) / (count - 2))) for b in bandwidths]
    total = sum(most)
    return tuple(share / total for share in most)


def _access_bytes_per_s(graph: LinkGraph) -> list[float]:
    """The bandwidth of each rank's narrowest used link, out or in, among the first and last hops to
    and from every other rank."""
    ranks = range(graph.world_size)
    found = []
    for rank in ranks:
        ends: set[str] = set()
        for other in ranks:
            if other != rank:
                ends.update(name for name, _ in graph.route(rank, other).parts[:1])
                ends.update(name for name, _ in graph.route(other, rank).parts[-1:])
        found.append(min(graph.link(name).cost.bandwidth_bytes_per_s for name in ends))
    return found
