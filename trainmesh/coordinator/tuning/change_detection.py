"""When to suspect a link, and what probing may cost. Pure.

There are two signals. One is several steps in a row whose collectives take longer, or less long,
than when the configuration was settled. The other is time, while a link is known to be slow: a plan
that avoids the link cannot notice that it has healed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from trainmesh.coordinator.measure import MeasuredStep
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.types import PairTime

__all__ = ["baseline", "change", "gap_s", "probe_bytes", "probe_s"]

LEAST_PROBE_BYTES = 64 * 1024
"""Below, latency is all that a transfer shows."""
MOST_PROBE_BYTES = 8 * 1024 * 1024
"""Above, a transfer shows nothing more, and takes longer."""
LEAST_GAP_S = 5.0
"""Between two probes, however short they are."""
MOST_GAP_S = 600.0
"""A change of links that no step shows is found this late at most, if probes are cheap."""
MAX_DOUBLINGS = 5
"""Of the gap after probes that showed nothing: 32 times ``LEAST_GAP_S``."""
URGENCY = 4
"""Probes that steps give a reason for may take this many times the usual share of the time."""
WARM_SHARE = 0.25
"""Of a transfer's time: a smaller one goes first, so that TCP has opened its window."""
PINGS = 12
"""How many empty messages a pair exchanges one after the other (``trainmesh.hooks.probing``), with
the barrier before them."""


def baseline(steps: Iterable[MeasuredStep]) -> dict[tuple[int, ...], float]:
    """How long a step with buckets of given sizes usually communicates: the median."""
    by_sizes: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for step in steps:
        by_sizes[step.sizes].append(step.transfer_s)
    return {sizes: median(times) for sizes, times in by_sizes.items()}


def change(
    steps: Sequence[MeasuredStep], usual_s: Mapping[tuple[int, ...], float], settings: Settings
) -> float | None:
    """The ratio of the last ``change_steps`` steps' time to the usual time, if all of them took at
    least ``change_ratio`` times as long, or all of them that much less; else None."""
    if len(steps) < settings.change_steps:
        return None
    ratios = [_ratio(step, usual_s) for step in steps[-settings.change_steps :]]
    slower = all(ratio > settings.change_ratio for ratio in ratios)
    faster = all(ratio < 1 / settings.change_ratio for ratio in ratios)
    return median(ratios) if slower or faster else None


def _ratio(step: MeasuredStep, usual_s: Mapping[tuple[int, ...], float]) -> float:
    """Against steps with the same buckets; 1 if there were none."""
    usual = usual_s.get(step.sizes)
    return step.transfer_s / usual if usual else 1.0


def probe_bytes(slowest_bytes_per_s: float, settings: Settings) -> int:
    """The size of a probe's message: short on the slowest link, and still long enough to be
    measured on the others."""
    wanted = int(settings.probe_transfer_s * slowest_bytes_per_s)
    return min(MOST_PROBE_BYTES, max(LEAST_PROBE_BYTES, wanted))


def probe_s(pairs: Iterable[PairTime]) -> float:
    """How long a probe delayed the training: the sum of its turns, each as long as its slowest
    pair."""
    turns: dict[int, float] = defaultdict(float)
    for pair in pairs:
        took_s = (1 + WARM_SHARE) * pair.transfer_s + PINGS * pair.latency_s
        turns[pair.turn] = max(turns[pair.turn], took_s)
    return sum(turns.values())


def gap_s(duration_s: float, settings: Settings, *, urgent: bool, in_vain: int) -> float:
    """The time until the next probe. A probe of ``duration_s`` takes at most ``probe_share`` of it.
    The time doubles for each probe ``in_vain``, which found nothing new, and is a quarter as long
    if the probe is ``urgent``. Links rarely change, so the doubling keeps the average to the
    share."""
    share = settings.probe_share * (URGENCY if urgent else 1)
    least_s = max(LEAST_GAP_S, duration_s / share)
    return min(max(MOST_GAP_S, least_s), least_s * 2.0 ** min(in_vain, MAX_DOUBLINGS))
