"""Arrival skew: which ranks the others wait for. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from trainmesh.launcher.report.analysis_types import RankSkew, Spread
from trainmesh.launcher.report.run_sample import Group
from trainmesh.types import BucketTiming

__all__ = ["clock_offsets_ns", "rank_skew"]


def rank_skew(
    groups: Sequence[Group], clocks: Mapping[int, str], nodes: Mapping[int, str]
) -> tuple[RankSkew, ...]:
    """Lateness of each rank against the earliest rank at the same bucket of the same step.

    Args:
        groups: steps that all ranks have reported.
        clocks: identity of each rank's clock; ranks that are not in it share an unknown one.
        nodes: name of each rank's node.
    """
    if not groups or len(groups[0]) < 2:
        return ()
    offsets_ns = clock_offsets_ns(groups, clocks)
    late_ns: dict[int, list[float]] = defaultdict(list)
    last: Counter[int] = Counter()
    for timings in _buckets(groups):
        arrivals = {
            rank: timing.arrival_ns - offsets_ns[clocks.get(rank, "")]
            for rank, timing in timings.items()
        }
        earliest = min(arrivals.values())
        last[max(arrivals, key=arrivals.__getitem__)] += 1
        for rank, arrival in arrivals.items():
            late_ns[rank].append(arrival - earliest)
    skews = []
    for rank in sorted(late_ns):
        spread = Spread.of([late / 1e9 for late in late_ns[rank]])
        skews.append(
            RankSkew(
                rank=rank,
                node=nodes.get(rank, ""),
                median_s=spread.median_s,
                p95_s=spread.p95_s,
                last_share=last[rank] / spread.num_samples,
            )
        )
    return tuple(skews)


def clock_offsets_ns(groups: Sequence[Group], clocks: Mapping[int, str]) -> dict[str, float]:
    """How far each clock is ahead of rank 0's.

    An all-reduce ends about everywhere at once, so the median over buckets of the difference
    between the ends on two clocks is the difference of the clocks. Drift is not followed.
    """
    reference = clocks.get(0, "")
    differences: dict[str, list[float]] = defaultdict(list)
    for timings in _buckets(groups):
        ends: dict[str, list[int]] = defaultdict(list)
        for rank, timing in timings.items():
            ends[clocks.get(rank, "")].append(timing.end_ns)
        if reference in ends:
            zero = median(ends[reference])
            for clock, values in ends.items():
                differences[clock].append(median(values) - zero)
    offsets = {clock: median(values) for clock, values in differences.items()}
    return defaultdict(float, offsets | {reference: 0.0})


def _buckets(groups: Sequence[Group]) -> Iterator[dict[int, BucketTiming]]:
    """Every bucket of every step, by rank; steps whose ranks differ in shape are left out."""
    for group in groups:
        if len({len(report.buckets) for report in group.values()}) == 1:
            for timings in zip(*(report.buckets for report in group.values()), strict=True):
                yield dict(zip(group, timings, strict=True))
