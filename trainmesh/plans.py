"""What makes a plan well formed for a job; both the planner and every rank check it."""

from __future__ import annotations

from trainmesh.errors import PlanError
from trainmesh.types import Algorithm, Plan

__all__ = ["check_shape"]


def check_shape(plan: Plan, world_size: int) -> None:
    """Check that ``plan`` names each rank of a job of ``world_size`` exactly once.

    Raises:
        PlanError: it does not; the message says what is wrong.
    """
    if plan.world_size != world_size:
        raise PlanError(f"plan is for {plan.world_size} ranks, the job has {world_size}")
    if sorted(plan.order) != list(range(world_size)):
        raise PlanError(f"{plan.algorithm}: order is not a permutation of 0..{world_size - 1}")
    if plan.algorithm == Algorithm.NATIVE and plan.order != tuple(range(world_size)):
        raise PlanError("native: order must be rank order")
    if plan.algorithm == Algorithm.HIERARCHICAL:
        if not plan.islands or not all(plan.islands):
            raise PlanError("hierarchical: no islands, or an empty one")
        if sorted(rank for island in plan.islands for rank in island) != list(range(world_size)):
            raise PlanError(f"hierarchical: islands don't partition 0..{world_size - 1}")
    elif plan.islands:
        raise PlanError(f"{plan.algorithm}: islands belong to hierarchical plans only")
