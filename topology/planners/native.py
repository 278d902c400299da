"""native: what the backend does by itself, taken as one ring in rank order (gloo's algorithm)."""

from __future__ import annotations

from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.request import Request
from trainmesh.types import Algorithm, Plan

__all__ = ["plan"]


def plan(graph: LinkGraph, request: Request) -> Plan:
    """The plan that is always there."""
    order = tuple(range(graph.world_size))
    return Plan(
        algorithm=Algorithm.NATIVE,
        world_size=len(order),
        order=order,
        collective=request.collective,
        nbytes=request.nbytes,
    )
