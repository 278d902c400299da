"""The settings that the user asked for: which are refused, and since when the others are in force.
Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.coordinator.tuning.settings import AUTO, NO_CODEC, Knob
from trainmesh.types import Algorithm, Asked
from trainmesh.units import count, size

__all__ = [
    "anew",
    "asked_for",
    "in_force",
    "name",
    "refused",
    "sentence",
    "unmet",
    "with_past",
]


def asked_for(only: str | None, fusion_bytes: int | None, compression: str) -> tuple[Asked, ...]:
    """The settings that the user has fixed. Native, with which a job begins, is in force from step
    0."""
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


def refused(
    asked: Iterable[Asked], why: str, comm_config: CommConfig | None = None
) -> tuple[Asked, ...]:
    """``asked`` when the ranks can't carry out ``comm_config`` (None: anything at all)."""
    return tuple(
        replace(item, refusal=why)
        if item.since_step is None and (comm_config is None or _is_in(item, comm_config))
        else item
        for item in asked
    )


def in_force(asked: Iterable[Asked], comm_config: CommConfig, step: int) -> tuple[Asked, ...]:
    """``asked`` when all ranks run ``comm_config`` from ``step`` on."""
    return tuple(
        replace(item, since_step=step, refusal="")
        if item.since_step is None and _is_in(item, comm_config)
        else item
        for item in asked
    )


def anew(asked: Iterable[Asked]) -> tuple[Asked, ...]:
    """``asked`` when the processes begin again, or another coordinator looks at them."""
    return tuple(
        replace(
            _fresh(item.knob, item.value),
            was_in_force=item.was_in_force or item.since_step is not None,
        )
        for item in asked
    )


def with_past(asked: Iterable[Asked], earlier: Iterable[Asked]) -> tuple[Asked, ...]:
    """``asked`` with what an ``earlier`` coordinator of the job has seen."""
    past = {(item.knob, item.value) for item in anew(earlier) if item.was_in_force}
    return tuple(
        replace(item, was_in_force=True) if (item.knob, item.value) in past else item
        for item in asked
    )


def sentence(item: Asked) -> str:
    """Why ``item``, which has a refusal, can't be had."""
    if item.was_in_force:
        return f"{name(item)} was in force earlier and can't run any more: {item.refusal}"
    return f"{name(item)} was asked for and can't run here: {item.refusal}"


def unmet(asked: Iterable[Asked], num_steps: int) -> tuple[str, ...]:
    """A sentence for each item that was not in force in the last start of the processes, which
    ended after ``num_steps``."""
    return tuple(_unmet(item, num_steps) for item in asked if item.since_step is None)


def _unmet(item: Asked, num_steps: int) -> str:
    if item.refusal:
        return sentence(item)
    after = f"the job ended after {count(num_steps, 'step')}"
    if item.was_in_force:
        return f"{name(item)} was in force earlier, but was not seen in force again: {after} more"
    return f"{name(item)} was asked for but never in force: {after}"


def name(item: Asked) -> str:
    """As the launch was told: ``--plan ring``, ``--fusion 8.00 MB``, ``--compression bf16``."""
    flag = {Knob.CODEC: "compression"}.get(Knob(item.knob), item.knob)
    value = size(int(item.value)) if item.knob == Knob.FUSION else item.value
    return f"--{flag} {value}"


def _is_in(item: Asked, comm_config: CommConfig) -> bool:
    has = {
        Knob.PLAN: comm_config.plan.algorithm,
        Knob.FUSION: str(comm_config.fusion_bytes),
        Knob.CODEC: comm_config.codec,
    }
    return has.get(Knob(item.knob)) == item.value
