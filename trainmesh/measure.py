"""From ranks' step reports to the numbers that decisions are made from. Pure.

A step counts once every rank has reported it. The *transfer* time of a bucket is the least
``end - start`` over the ranks: the last rank to arrive waits for nobody, so its time is the
transfer alone, and no two hosts' clocks are ever compared.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from trainmesh.types import StepReport

__all__ = ["FIRST_STEP", "MeasuredStep", "StepWindow", "exposed_s", "measure"]

FIRST_STEP = 2
"""Steps before this one are not measured: DDP rebuilds its buckets after step 0."""

MAX_PARTIAL = 64
MAX_STEPS = 128


@dataclass(frozen=True)
class MeasuredStep:
    """One step over all ranks: per bucket (nbytes, transfer_s), in bucket order."""

    step: int
    epoch: int
    step_time_s: float
    exposed_share: float
    transfers: tuple[tuple[int, float], ...]

    @property
    def exposed_s(self) -> float:
        return self.exposed_share * self.step_time_s

    @property
    def transfer_s(self) -> float:
        return sum(seconds for _, seconds in self.transfers)


def exposed_s(report: StepReport) -> float:
    """Seconds for which the rank had nothing to do but wait for its last bucket."""
    if not report.buckets:
        return 0.0
    last_arrival = max(bucket.arrival_ns for bucket in report.buckets)
    last_end = max(bucket.end_ns for bucket in report.buckets)
    return max(0, last_end - last_arrival) / 1e9


def measure(reports: list[StepReport]) -> MeasuredStep | None:
    """One step from the reports of all its ranks; None if they don't belong together."""
    first = reports[0]
    shapes = {tuple(bucket.nbytes for bucket in report.buckets) for report in reports}
    if len(shapes) != 1 or len({report.epoch for report in reports}) != 1 or not first.buckets:
        return None
    step_time_s = median(report.end_ns - report.begin_ns for report in reports) / 1e9
    exposed = median(exposed_s(report) for report in reports)
    transfers = tuple(
        (bucket.nbytes, min(_duration_s(report, place) for report in reports))
        for place, bucket in enumerate(first.buckets)
    )
    share = min(1.0, exposed / step_time_s) if step_time_s else 0.0
    return MeasuredStep(first.step, first.epoch, step_time_s, share, transfers)


def _duration_s(report: StepReport, place: int) -> float:
    bucket = report.buckets[place]
    return max(0, bucket.end_ns - bucket.start_ns) / 1e9


@dataclass
class StepWindow:
    """Collects reports into measured steps; bounded in every direction."""

    world_size: int
    steps: deque[MeasuredStep] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))
    _partial: dict[int, dict[int, StepReport]] = field(default_factory=dict)

    def add(self, report: StepReport) -> None:
        """Take one report of the main DDP module (number 0) with bucket times."""
        if report.module or report.step < FIRST_STEP or not report.buckets:
            return
        ranks = self._partial.setdefault(report.step, {})
        ranks[report.rank] = report
        if len(ranks) == self.world_size:
            measured = measure(list(self._partial.pop(report.step).values()))
            if measured is not None:
                self.steps.append(measured)
        if len(self._partial) > MAX_PARTIAL:
            del self._partial[min(self._partial)]

    def of_epoch(self, epoch: int) -> list[MeasuredStep]:
        return [step for step in self.steps if step.epoch == epoch]
