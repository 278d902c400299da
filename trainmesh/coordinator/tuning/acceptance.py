"""Whether a change was worth it, from measurements before and after it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from trainmesh.coordinator.measure import MeasuredStep
from trainmesh.coordinator.tuning.settings import Settings

__all__ = ["delivers", "harm", "quicker"]


def harm(
    before: Sequence[MeasuredStep], after: Sequence[MeasuredStep], settings: Settings
) -> tuple[bool, str]:
    """Whether a plan made things worse, and the numbers in words.

    It did if steps wait longer for communication, by more than a share of the whole step, although
    their buckets are hardly faster (the plan costs more than it gains), or if the buckets
    themselves take much longer. The comparison is of waiting, not of step time: a machine that
    becomes busy with something else slows the compute part too, and the plan is not the cause.
    """
    was, now = _Medians(before), _Medians(after)
    growth = (now.exposed_s - was.exposed_s) / was.step_s
    ratio = _ratio(now.transfer_s, was.transfer_s)
    harmful = growth > 0 and (
        ratio > settings.harm_ratio
        or (growth > settings.harm_share and ratio > 1 - settings.harm_share)
    )
    words = (
        f"a step's buckets take {now.transfer_s * 1e3:.2f} ms, before the switch "
        f"{was.transfer_s * 1e3:.2f} ms; a step waits {now.exposed_s * 1e3:.2f} ms of "
        f"{now.step_s * 1e3:.2f} ms, before {was.exposed_s * 1e3:.2f} ms of "
        f"{was.step_s * 1e3:.2f} ms"
    )
    return harmful, words


def delivers(
    before: Sequence[MeasuredStep], after: Sequence[MeasuredStep], settings: Settings
) -> bool:
    """Whether a plan gained anything: its buckets take less time, or its steps wait less, by at
    least half of the margin that it was predicted to gain."""
    was, now = _Medians(before), _Medians(after)
    least = settings.margin / 2
    return (
        _ratio(now.transfer_s, was.transfer_s) <= 1 - least
        or (was.exposed_s - now.exposed_s) / was.step_s >= least
    )


def quicker(
    before: Sequence[MeasuredStep], after: Sequence[MeasuredStep], *, least: float
) -> tuple[bool, str]:
    """Whether steps are shorter by at least the share ``least`` (if it is negative: longer by no
    more than that share), and the numbers in words."""
    was, now = _Medians(before), _Medians(after)
    words = f"a step takes {now.step_s * 1e3:.2f} ms, before {was.step_s * 1e3:.2f} ms"
    return now.step_s <= (1 - least) * was.step_s, words


class _Medians:
    def __init__(self, steps: Sequence[MeasuredStep]) -> None:
        self.transfer_s = median(step.transfer_s for step in steps)
        self.exposed_s = median(step.exposed_s for step in steps)
        self.step_s = median(step.step_time_s for step in steps)


def _ratio(now_s: float, was_s: float) -> float:
    return now_s / was_s if was_s else 1.0
