"""native: the backend's own algorithm, modelled as one ring in rank order. That is gloo's, and not
NCCL's (``Executors.native_is_ring``)."""

from __future__ import annotations

from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Algorithm, Plan

__all__ = ["plan", "why_not"]


def why_not(graph: LinkGraph, request: PlanRequest) -> None:
    """Nothing is ever against it."""


def plan(graph: LinkGraph, request: PlanRequest) -> Plan:
    """The plan that is always there."""
    order = tuple(range(graph.world_size))
    return Plan(
        algorithm=Algorithm.NATIVE,
        world_size=len(order),
        order=order,
        collective=request.collective,
        nbytes=request.nbytes,
    )
