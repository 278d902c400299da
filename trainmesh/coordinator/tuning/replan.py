"""Whether another plan pays, on the links in their estimated state. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from trainmesh.coordinator.tuning.calibration import Calibration
from trainmesh.coordinator.tuning.comm_config import same_way
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.errors import GraphError, PlanError
from trainmesh.topology.cost import plan_cost
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import choose
from trainmesh.topology.request import LIVE, NCCL, ONE_RING, Executors
from trainmesh.types import Algorithm, Choice, Plan

__all__ = ["Planned", "executors_of", "predicted_s", "replan"]


@dataclass(frozen=True)
class Planned:
    """``plan`` is None if the one in force stays; ``reason`` says why in either case."""

    choice: Choice
    plan: Plan | None
    reason: str


def predicted_s(plan: Plan, graph: LinkGraph, sizes: Sequence[int]) -> float | None:
    """Time for collectives of ``sizes`` bytes, one after the other; None for a plug-in's plan, and
    for one that names nodes of another graph."""
    try:
        cost = plan_cost(plan, graph, LIVE.message_s)
    except (PlanError, GraphError):
        return None
    return sum(cost.predict(nbytes).time_s for nbytes in sizes)


def replan(
    graph: LinkGraph,
    sizes: Sequence[int],
    current: Plan,
    calibration: Calibration,
    settings: Settings,
    *,
    backend: str,
    degraded: bool = False,
    refused: Collection[str] = (),
) -> Planned:
    """Choose a plan for a step whose collectives have ``sizes``; ``current`` is in force.

    A plan replaces ``current`` if it is predicted to be faster by the margin. Native, which costs
    nothing, returns as soon as ``current`` is not predicted to be faster by half of the margin. In
    between, neither replaces the other.

    Args:
        degraded: A link is known to be slow.
        refused: Algorithms that were tried on this graph in vain; with native among them,
            ``current`` stays.
    """
    executors = executors_of(backend, asked=settings.only is not None or degraded)
    kept = frozenset(executors.algorithms) - (frozenset(refused) - {Algorithm.NATIVE})
    choice = choose(
        graph,
        sizes,
        executors=replace(executors, algorithms=kept),
        calibration=calibration.factors,
        margin=settings.margin,
        only=settings.only,
    )
    plan = next(plan for plan in choice.candidates if plan.algorithm == choice.chosen)
    if same_way(plan, current):
        return Planned(choice, None, plan.reason)
    if settings.only is not None and current.algorithm != plan.algorithm:
        return Planned(choice, plan, plan.reason)
    if plan.algorithm == Algorithm.NATIVE and Algorithm.NATIVE in refused:
        return Planned(choice, None, "native was tried on these links, and was slower")
    new_s = predicted_s(plan, graph, sizes)
    old_s = predicted_s(current, graph, sizes)
    if new_s is None or old_s is None:
        return Planned(choice, plan, plan.reason)
    new_s *= calibration.factor(plan.algorithm)
    old_s *= calibration.factor(current.algorithm)
    if plan.algorithm == Algorithm.NATIVE:
        pays = old_s >= (1 - settings.margin / 2) * new_s
    else:
        pays = new_s < (1 - settings.margin) * old_s
    if pays:
        return Planned(choice, plan, plan.reason)
    return Planned(choice, None, f"{plan.algorithm} would gain less than the margin")


def executors_of(backend: str, *, asked: bool) -> Executors:
    """NCCL knows NVLink, rails and switches that reduce, and a link graph may not: on healthy links
    the choice is left to it, unless something else is ``asked`` for."""
    if "nccl" in backend:
        return NCCL if asked else ONE_RING
    return replace(LIVE, native_is_ring="gloo" in backend)
