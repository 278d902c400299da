"""Planning and evaluating measured probes: who probes whom when, with which messages, and which
alpha and beta follow from the times.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, median

from trainmesh.probe_types import CostFit, RoundTrips
from trainmesh.types import LinkCost

__all__ = [
    "LEAST_BYTES",
    "STEP",
    "SWEEPS",
    "exchanged",
    "fit_cost",
    "ladder",
    "rounds",
    "summary",
    "weighted_median",
]

SWEEPS = 5
"""How often the sizes of the ladder are gone through: five samples make a median that one
disturbance does not move."""
SMALLEST_BYTES = 4_096
"""Below, messages take as long: latency is all there is."""
STEP = 4
"""From one size to the next: enough sizes for a line, and most time goes to the large ones."""
LEAST_BYTES = 2 * SWEEPS * (SMALLEST_BYTES + STEP * SMALLEST_BYTES)
"""With less there are no two sizes to draw a line through."""
RESAMPLES = 200
"""Of the bootstrap: enough for an interval."""
SEED = 1
"""Any: the same measurements give the same interval."""


def rounds(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """All unordered pairs of ``names`` in rounds of disjoint pairs.

    The circle method of round-robin tournaments (Kirkman 1847): one stays seated, the others
    move on by one seat a round. That makes N-1 rounds for N names, N if N is odd. In no round
    does a name occur twice, so no node receives from two at a time. A pair is in the order of
    ``names``.
    """
    if len(names) < 2:
        return []
    place = {name: index for index, name in enumerate(names)}
    seats: list[str | None] = list(names) if len(names) % 2 == 0 else [*names, None]
    result = []
    for _ in range(len(seats) - 1):
        pairs = []
        for a, b in zip(seats[: len(seats) // 2], reversed(seats), strict=False):
            if a is not None and b is not None:
                pairs.append((a, b) if place[a] < place[b] else (b, a))
        result.append(pairs)
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return result


def ladder(nbytes: int) -> list[int]:
    """Message sizes, a factor of 4 apart from 4 KiB on, whose sweeps exchange at most
    ``nbytes``. Empty below ``LEAST_BYTES``."""
    sizes: list[int] = []
    size = SMALLEST_BYTES
    while exchanged([*sizes, size]) <= nbytes:
        sizes.append(size)
        size *= STEP
    return sizes if nbytes >= LEAST_BYTES else []


def exchanged(sizes: Sequence[int]) -> int:
    """Bytes of all sweeps over ``sizes``, both directions together."""
    return 2 * SWEEPS * sum(sizes)


def summary(seconds: Sequence[float], *, sent: int) -> RoundTrips:
    """Least, median, mean, 99th percentile (nearest rank) and largest of round-trip times."""
    if not seconds:
        return RoundTrips(sent=sent, received=0)
    ordered = sorted(seconds)
    return RoundTrips(
        sent=sent,
        received=len(ordered),
        min_s=ordered[0],
        median_s=median(ordered),
        mean_s=fmean(ordered),
        p99_s=ordered[math.ceil(0.99 * len(ordered)) - 1],
        max_s=ordered[-1],
    )


def fit_cost(samples: Sequence[tuple[int, float]]) -> CostFit | None:
    """Hockney's alpha and bandwidth of one direction, robustly, from the times of exchanges.

    Args:
        samples: (nbytes, seconds) until ``nbytes`` were there and an empty answer was back,
            round trips of empty messages among them. With no clock that both ends share, half
            of the round trip counts for each way: seconds = 2 alpha + nbytes / bandwidth.

    On the median of each size: 1 / bandwidth is the median of all slopes between two sizes,
    weighted by the difference of the sizes (Theil-Sen with the weights of Sievers 1978, which
    suit sizes that are far apart); 2 alpha is what least absolute *relative* errors give, the
    median of what is left of each time, weighted by 1 / time, so that small messages decide it,
    and no less than the quickest empty message took.
    The intervals are 95 % percentile bootstrap (Efron and Tibshirani 1993, chapter 13),
    resampled within each size with a fixed seed.

    Returns:
        None with fewer than two sizes, or if larger messages were not slower.
    """
    by_size: dict[int, list[float]] = defaultdict(list)
    for nbytes, seconds in samples:
        by_size[nbytes].append(seconds)
    least_s = min(by_size.get(0, [0.0]))
    line = _line({nbytes: median(times) for nbytes, times in by_size.items()}, least_s)
    if line is None:
        return None
    intercept_s, s_per_byte = line
    intercepts, slopes = _bootstrap(by_size, line, least_s)
    return CostFit(
        cost=LinkCost(alpha_s=intercept_s / 2, bandwidth_bytes_per_s=1 / s_per_byte),
        alpha_low_s=min(intercept_s, _quantile(intercepts, 0.025)) / 2,
        alpha_high_s=max(intercept_s, _quantile(intercepts, 0.975)) / 2,
        bandwidth_low_bytes_per_s=1 / max(s_per_byte, _quantile(slopes, 0.975)),
        bandwidth_high_bytes_per_s=1 / min(s_per_byte, _quantile(slopes, 0.025)),
        num_samples=len(samples),
        residual=_residual(by_size, intercept_s, s_per_byte),
    )


def weighted_median(pairs: Sequence[tuple[float, float]]) -> float:
    """The least value at which the weights of (value, weight) reach half of their sum."""
    ordered = sorted(pairs)
    half = sum(weight for _, weight in ordered) / 2
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= half:
            return value
    raise ValueError("there is no value")


def _line(medians: Mapping[int, float], least_s: float) -> tuple[float, float] | None:
    """Intercept (s) and slope (s/byte) of the line through the median time of each size;
    the intercept is at least ``least_s``."""
    points = sorted(medians.items())
    if len(points) < 2:
        return None
    slope = weighted_median(
        [((t2 - t1) / (n2 - n1), n2 - n1) for (n1, t1), (n2, t2) in combinations(points, 2)]
    )
    if slope <= 0:
        return None
    rests = [(t - n * slope, 1 / t) for n, t in points if t > 0]
    return max(least_s, weighted_median(rests)) if rests else least_s, slope


def _bootstrap(
    by_size: Mapping[int, Sequence[float]], line: tuple[float, float], least_s: float
) -> tuple[list[float], list[float]]:
    """Intercepts and slopes of resampled times, sorted; a resample without a line counts as
    ``line``."""
    chance = random.Random(SEED)  # noqa: S311 - the same samples, the same interval
    lines = [
        _line(
            {n: median(chance.choices(times, k=len(times))) for n, times in by_size.items()},
            least_s,
        )
        or line
        for _ in range(RESAMPLES)
    ]
    return sorted(intercept for intercept, _ in lines), sorted(slope for _, slope in lines)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _residual(by_size: Mapping[int, Sequence[float]], intercept_s: float, slope: float) -> float:
    times = [(n, median(seconds)) for n, seconds in by_size.items()]
    return median([abs(t - intercept_s - n * slope) / t for n, t in times if t > 0] or [0.0])
