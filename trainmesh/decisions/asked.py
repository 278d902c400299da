"""What the user asked for: what of it is refused, and since when the rest is in force. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from trainmesh.decisions.regime import Regime
from trainmesh.decisions.settings import AUTO, NO_CODEC, Knob
from trainmesh.format import count, size
from trainmesh.types import Algorithm, Asked

__all__ = [
    "anew",
    "asked_for",
    "in_force",
    "name",
    "refused",
    "sentence",
    "unmet",
]


def asked_for(only: str | None, fusion_bytes: int | None, compression: str) -> tuple[Asked, ...]:
    """What these settings fix; native, with which a job begins, is in force from step 0."""
    found = []
    if only is not None:
        found.append(_fresh(Knob.PLAN, only))
    if fusion_bytes:
        found.append(_fresh(Knob.FUSION, str(fusion_bytes)))
    if compression not in (AUTO, NO_CODEC):
        found.append(_fresh(Knob.CODEC, compression))
    return tuple(found)


def _fresh(knob: str, value: str) -> Asked:
    is_native = knob == Knob.PLAN and value == Algorithm.NATIVE
    return Asked(knob=knob, value=value, since_step=0 if is_native else None)


def refused(asked: Iterable[Asked], why: str, regime: Regime | None = None) -> tuple[Asked, ...]:
    """``asked`` when the ranks can't carry out ``regime`` (None: anything at all)."""
    return tuple(
        replace(item, refusal=why)
        if item.since_step is None and (regime is None or _is_in(item, regime))
        else item
        for item in asked
    )


def in_force(asked: Iterable[Asked], regime: Regime, step: int) -> tuple[Asked, ...]:
    """``asked`` when all ranks run ``regime`` from ``step`` on."""
    return tuple(
        replace(item, since_step=step, refusal="")
        if item.since_step is None and _is_in(item, regime)
        else item
        for item in asked
    )


def anew(asked: Iterable[Asked]) -> tuple[Asked, ...]:
    """``asked`` when the processes begin again."""
    return tuple(_fresh(item.knob, item.value) for item in asked)


def sentence(item: Asked) -> str:
    """Why ``item``, which has a refusal, can't be had."""
    return f"{name(item)} was asked for and can't run here: {item.refusal}"


def unmet(asked: Iterable[Asked], num_steps: int) -> tuple[str, ...]:
    """A sentence for each item that was never in force in a job that ended after ``num_steps``."""
    return tuple(
        sentence(item)
        if item.refusal
        else f"{name(item)} was asked for but never in force: the job ended after "
        f"{count(num_steps, 'step')}"
        for item in asked
        if item.since_step is None
    )


def name(item: Asked) -> str:
    """As the launch was told: ``--plan ring``, ``--fusion 8.00 MB``, ``--compression bf16``."""
    flag = {Knob.CODEC: "compression"}.get(Knob(item.knob), item.knob)
    value = size(int(item.value)) if item.knob == Knob.FUSION else item.value
    return f"--{flag} {value}"


def _is_in(item: Asked, regime: Regime) -> bool:
    has = {
        Knob.PLAN: regime.plan.algorithm,
        Knob.FUSION: str(regime.fusion_bytes),
        Knob.CODEC: regime.codec,
    }
    return has.get(Knob(item.knob)) == item.value
