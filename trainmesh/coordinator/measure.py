"""From ranks' step reports to the numbers that decisions are made from. Pure.

A step counts once every rank has reported it. The *transfer* time of a bucket is the least
``end - start`` over the ranks: the last rank to arrive waits for nobody, so its time is the
transfer alone, and no two hosts' clocks are ever compared.

A *collective* is one bucket, or those that were fused. Its *service* time begins when it was
started or when the one before it had ended, whichever is later: time spent in the queue behind
others is not counted, so the service times of a step add up to the time in which it communicated.
Collectives of quite different sizes that are in flight at once share the network in unknown parts
(gloo runs two at a time), so they count as one, with all their bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from statistics import fmean, median

from trainmesh.types import BucketTiming, StepReport

__all__ = ["FIRST_STEP", "MeasuredStep", "StepWindow", "exposed_s", "means", "measure"]

FIRST_STEP = 2
"""Steps before this one are not measured: DDP rebuilds its buckets after step 0."""

ALIKE = 2
"""Sizes within this factor of each other are assumed to be served in turn."""
MAX_PARTIAL = 64
"""Steps of which some ranks have not reported yet; older ones lack a report that was lost."""
MAX_STEPS = 128
"""Whole steps that are kept: enough for medians, and bounded however long the job runs."""


@dataclass(frozen=True)
class MeasuredStep:
    """One step over all ranks.

    ``transfers``: per bucket (nbytes, transfer_s), in bucket order. ``collectives``: per
    collective (nbytes, service_s), in the order of their first buckets. ``services``: the same
    without counting any as one; only their sum is exact, but there are more sizes among them.
    ``arrivals_s``: when each bucket's gradients were ready, counted from the first.
    """

    step: int
    epoch: int
    step_time_s: float
    exposed_share: float
    transfers: tuple[tuple[int, float], ...]
    collectives: tuple[tuple[int, float], ...]
    services: tuple[tuple[int, float], ...]
    arrivals_s: tuple[float, ...]

    @property
    def exposed_s(self) -> float:
        return self.exposed_share * self.step_time_s

    @property
    def transfer_s(self) -> float:
        """The time in which the step communicated."""
        return sum(seconds for _, seconds in self.collectives)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each bucket."""
        return tuple(nbytes for nbytes, _ in self.transfers)

    @property
    def by_size(self) -> tuple[tuple[int, float], ...]:
        """The mean service time of each size of collective. If several are in flight at once they
        share the network, and only the mean tells the cost of one."""
        return means(self.collectives)


def means(times: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The mean time of each size."""
    return tuple(
        (nbytes, fmean(seconds for _, seconds in same))
        for nbytes, same in groupby(sorted(times), key=itemgetter(0))
    )


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
    fused = {tuple(sorted(_fused(report.buckets).values())) for report in reports}
    if len(fused) != 1:
        return None  # the ranks don't agree what was fused
    alone = fused.pop()
    sizes = [bucket.nbytes for bucket in first.buckets]
    step_time_s = median(report.end_ns - report.begin_ns for report in reports) / 1e9
    exposed = median(exposed_s(report) for report in reports)
    transfers = tuple(
        (bucket.nbytes, min(_duration_s(report.buckets[place]) for report in reports))
        for place, bucket in enumerate(first.buckets)
    )
    arrivals_s = tuple(
        median(
            report.buckets[place].arrival_ns - report.buckets[0].arrival_ns for report in reports
        )
        / 1e9
        for place in range(len(first.buckets))
    )
    share = min(1.0, exposed / step_time_s) if step_time_s else 0.0
    return MeasuredStep(
        first.step,
        first.epoch,
        step_time_s,
        share,
        transfers,
        _least_served(_sharing(alone, sizes, reports), sizes, reports),
        _least_served(alone, sizes, reports),
        arrivals_s,
    )


def _duration_s(bucket: BucketTiming) -> float:
    return max(0, bucket.end_ns - bucket.start_ns) / 1e9


def _least_served(
    groups: Sequence[tuple[int, ...]], sizes: Sequence[int], reports: Sequence[StepReport]
) -> tuple[tuple[int, float], ...]:
    """Bytes and least service time over the ranks of each group of buckets."""
    served = [_served(report.buckets, groups) for report in reports]
    return tuple(
        (sum(sizes[place] for place in group), min(times[number] for times in served))
        for number, group in enumerate(groups)
    )


def _fused(buckets: Sequence[BucketTiming]) -> dict[tuple[int, int], tuple[int, ...]]:
    """The places of the buckets of each collective, by its start and end."""
    together: dict[tuple[int, int], tuple[int, ...]] = {}
    for place, bucket in enumerate(buckets):
        key = (bucket.start_ns, bucket.end_ns)
        together[key] = (*together.get(key, ()), place)
    return together


def _sharing(
    collectives: Sequence[tuple[int, ...]], sizes: Sequence[int], reports: Sequence[StepReport]
) -> list[tuple[int, ...]]:
    """Join those of quite different sizes that were in flight at once on every rank."""
    runs: list[list[tuple[int, ...]]] = []
    for group in collectives:
        if runs and all(
            report.buckets[group[0]].start_ns < _last_end_ns(report, runs[-1]) for report in reports
        ):
            runs[-1].append(group)
        else:
            runs.append([group])
    found: list[tuple[int, ...]] = []
    for run in runs:
        nbytes = [sum(sizes[place] for place in group) for group in run]
        if max(nbytes) <= ALIKE * min(nbytes):
            found += run
        else:
            found.append(tuple(sorted(place for group in run for place in group)))
    return found


def _last_end_ns(report: StepReport, run: Sequence[tuple[int, ...]]) -> int:
    return max(report.buckets[group[0]].end_ns for group in run)


def _served(buckets: Sequence[BucketTiming], groups: Sequence[tuple[int, ...]]) -> list[float]:
    """The service time of each group on one rank."""
    spans = [
        (
            max(buckets[place].end_ns for place in group),
            min(buckets[place].start_ns for place in group),
            number,
        )
        for number, group in enumerate(groups)
    ]
    served = [0.0] * len(groups)
    free_ns = 0
    for end_ns, start_ns, number in sorted(spans):
        served[number] = max(0, end_ns - max(start_ns, free_ns)) / 1e9
        free_ns = max(free_ns, end_ns)
    return served


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
