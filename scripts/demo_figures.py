"""What the demo says of its two runs: step times from the runs' own records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from trainmesh.coordinator.measure import FIRST_STEP
from trainmesh.errors import TrainmeshError
from trainmesh.launcher.report.analysis_types import PlanOutcome
from trainmesh.types import Algorithm
from trainmesh.units import duration, quotient

__all__ = ["Figures", "figures", "moved_plan", "newest_step_s", "step_ends_ns", "summary"]

NEWEST_STEPS = 8
"""What a line of progress is the median of: short enough to show the fall within a few lines."""


@dataclass(frozen=True)
class Figures:
    """Median seconds of a step: before the fall, and after it once trainmesh had moved."""

    before_s: float
    after_s: float


def step_ends_ns(text: str) -> list[int]:
    """When each step ended, of what ``examples/chars.py --times`` has written so far; a last line
    without its end is still being written."""
    return [int(line) for line in text.split("\n")[:-1]]


def _step_times_s(ends_ns: Sequence[int]) -> list[float]:
    """How long the steps took, from step 1 on."""
    return [(end - begin) / 1e9 for begin, end in zip(ends_ns, ends_ns[1:], strict=False)]


def newest_step_s(ends_ns: Sequence[int]) -> float | None:
    """The median of the newest steps; None before there are two."""
    newest = _step_times_s(ends_ns)[-NEWEST_STEPS:]
    return median(newest) if newest else None


def moved_plan(plans: Sequence[PlanOutcome], fall_step: int) -> PlanOutcome:
    """The plan that trainmesh moved to after the fall, at which it then stayed or not.

    Raises:
        TrainmeshError: it did not move.
    """
    for plan in plans:
        if plan.first_step > fall_step and plan.algorithm != Algorithm.NATIVE:
            return plan
    raise TrainmeshError(f"trainmesh moved to no other plan after the fall at step {fall_step}")


def figures(ends_ns: Sequence[int], fall_step: int, moved_step: int) -> Figures:
    """Of steps that ended at ``ends_ns``; those between the fall and ``moved_step`` are left out.

    Raises:
        TrainmeshError: there are no steps before or after.
    """
    times_s = [0.0, *_step_times_s(ends_ns)]
    before, after = times_s[FIRST_STEP:fall_step], times_s[moved_step + 1 :]
    if not before or not after:
        raise TrainmeshError(
            f"{len(ends_ns)} steps, a fall at step {fall_step} and a new plan at step {moved_step} "
            "leave none to compare"
        )
    return Figures(median(before), median(after))


def summary(change: str, fall_step: int, moved: PlanOutcome, plain: Figures, ours: Figures) -> str:
    """The demo's one sentence. ``change`` says what fell, as in ``link h3-sw: 100 Mbit/s``."""
    ratio = quotient(plain.after_s, ours.after_s)
    return (
        f"one NIC of four fell to a quarter at step {fall_step} ({change}), undeclared: a step of "
        f"plain torchrun went from {duration(plain.before_s)} to {duration(plain.after_s)}; one of "
        f"trainmesh launch from {duration(ours.before_s)} to {duration(ours.after_s)}, once it had "
        f"moved to {moved.name} at step {moved.first_step}: {ratio:.2f}x as fast as torchrun"
    )
