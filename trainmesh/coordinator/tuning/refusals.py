"""Why what the user asked for can't be had in a job whose ranks are known. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from trainmesh.coordinator.tuning.replan import executors_of
from trainmesh.coordinator.tuning.replicas import Replicas
from trainmesh.coordinator.tuning.settings import Knob
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import why_not
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Asked

__all__ = ["TYPICAL_BYTES", "judged"]

TYPICAL_BYTES = 25 * 2**20
"""DDP's ``bucket_cap_mb``; whether an algorithm can be had does not depend on it."""
NOUNS = {Knob.FUSION: "fusion", Knob.CODEC: "compression"}
NOBODY = "one rank has nobody to send to"


def judged(
    asked: Iterable[Asked], replicas: Replicas, graph: LinkGraph, backend: str
) -> tuple[Asked, ...]:
    """``asked`` with the reason why an item can't be had, now that all ranks are known; ``graph``
    is what a plan has of the links."""
    return tuple(
        item
        if item.since_step is not None
        else replace(item, refusal=_refusal(item, replicas, graph, backend))
        for item in asked
    )


def _refusal(item: Asked, replicas: Replicas, graph: LinkGraph, backend: str) -> str:
    if not replicas.follows_plans:
        return "this job's gradients are not all-reduced by all ranks (FSDP2 without replicas)"
    if replicas.are_single:
        return "each shard has one replica, so nothing is all-reduced"
    if item.knob == Knob.PLAN:
        executors = executors_of(backend, asked=True)
        return why_not(item.value, graph, PlanRequest(TYPICAL_BYTES, executors=executors)) or ""
    if not replicas.are_all:
        return f"{NOUNS[Knob(item.knob)]} is for DDP, and this job is FSDP2's"
    return NOBODY if replicas.size == 1 else ""
