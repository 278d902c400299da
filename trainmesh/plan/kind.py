"""The kind of a built-in plan: which of its fields say what its messages are.

All that a plan's name alone would have to be looked up for (its shape, messages, price, executor
and words) follows from the kind, so a new algorithm that uses one of these kinds needs none of it.
"""

from __future__ import annotations

from enum import StrEnum

from trainmesh.errors import PlanError
from trainmesh.types import Algorithm, Plan

__all__ = ["FIELDS", "PlanKind", "is_built_in", "kind_of"]


class PlanKind(StrEnum):
    """By the field that a plan of this kind always has."""

    ORDER = "order"
    """One ring, which is the backend's own."""
    RINGS = "rings"
    ISLANDS = "islands"
    TREES = "trees"
    SHARES = "shares"


FIELDS: dict[PlanKind, tuple[str, ...]] = {
    PlanKind.ORDER: (),
    PlanKind.RINGS: ("rings", "shares"),
    PlanKind.ISLANDS: ("islands", "levels", "shares"),
    PlanKind.TREES: ("trees",),
    PlanKind.SHARES: ("shares",),
}
"""The fields of a kind beside ``order``; those of other kinds must be empty."""


def is_built_in(plan: Plan) -> bool:
    """Whether the messages are known: a plug-in's are not."""
    return plan.algorithm in tuple(Algorithm)


def kind_of(plan: Plan) -> PlanKind:
    """The kind of a built-in plan.

    Raises:
        PlanError: the algorithm is a plug-in's, or no field says what is sent.
    """
    if not is_built_in(plan):
        raise PlanError(f"the messages of algorithm {plan.algorithm!r} are not known")
    if plan.algorithm == Algorithm.NATIVE:
        return PlanKind.ORDER
    if plan.algorithm == Algorithm.RING:
        return PlanKind.RINGS if plan.rings else PlanKind.ORDER
    for kind in (PlanKind.TREES, PlanKind.ISLANDS, PlanKind.RINGS, PlanKind.SHARES):
        if getattr(plan, kind):
            return kind
    raise PlanError(f"{plan.algorithm}: no trees, islands, rings or shares")
