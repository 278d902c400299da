"""Which endpoints answer, but far later than the others do (grey failure).

TTFTs, without the network (who is far is not ill), are compared in two ways, each as a ratio to
what the pool would take: for a prompt of that size, which is what clients see, and for all the
work that the endpoint had before it, which is how fast it is. An outlier is far beyond the others
in both: a long queue alone is no illness, and a slow endpoint is welcome while the others are no
better. Only the last requests of each are compared: when all are slow, nobody is an outlier.
Attempts that still wait count as soon as they have waited too long, so that an endpoint which
never answers is seen long before a time-out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice
from statistics import median
from typing import Final

from trainmesh.serving.decide.endpoint import NOT_SLOW, Endpoint, Limits, Timing
from trainmesh.serving.decide.learn.estimate import nominal_s
from trainmesh.serving.decide.learn.forecast import PoolModel

__all__ = ["FLOOR_S", "Models", "expected_s", "is_slow", "judge"]

FLOOR_S: Final = 0.015
"""Below this, nothing counts as slow: it is noise beside a model's work."""
MADS: Final = 4.0
MAX_HABIT: Final = 5.0
"""An endpoint may always have been slower than the others, by no more than this: hardware
differs. Taking it out would cost capacity, and policies that expect TTFTs know it."""
FRESH_S: Final = 60.0
HISTORY: Final = 4
MIN_OTHERS: Final = 3
"""Timings that an endpoint needs to be compared with."""

Models = Sequence[PoolModel]
"""The pool's: of answers in one piece, of streams."""


def expected_s(models: Models, endpoint: Endpoint, tokens: float, stream: bool) -> float:
    """What the pool takes for that many tokens at an endpoint of this weight."""
    model = models[stream]
    takes_s = model.base_s + model.s_per_token * (tokens + 1)
    return max(takes_s, 1e-6) / endpoint.weight


def is_slow(models: Models, endpoint: Endpoint, timing: Timing) -> bool:
    """Whether one TTFT is above both of the endpoint's limits as of the last ``judge``."""
    expected = _both_expected(models, endpoint, timing)
    habit = min(max(endpoint.speeds[timing.stream].habit, 1.0), MAX_HABIT)
    return all(
        timing.ttft_s > above * times * e and timing.ttft_s > usual * e + FLOOR_S
        for (above, usual), times, e in zip(
            endpoint.slow_above, (1.0, habit), expected, strict=True
        )
    )


def judge(
    endpoints: Sequence[Endpoint], models: Models, ratio: float, samples: int, now_s: float
) -> list[str]:
    """Sets ``slow_above`` of each endpoint; returns for each why it is an outlier, or "".

    The last ``samples`` of an endpoint are compared with as many of the others, and with
    ``HISTORY`` times as many: with the first, because something may have befallen all of them
    just now; with the second, because a few requests may all have been lucky.
    """
    timings = [_latest(e, HISTORY * samples, now_s) for e in endpoints]
    ratios = [
        [_ratios(models, e, t) for t in mine] for e, mine in zip(endpoints, timings, strict=True)
    ]
    limits = [
        [
            max(pair)
            for pair in zip(
                _limits([[r[way] for r in mine[:samples]] for mine in ratios], ratio),
                _limits([[r[way] for r in mine] for mine in ratios], ratio),
                strict=True,
            )
        ]
        for way in (0, 1)
    ]
    reasons = []
    for endpoint, mine, by_prompt, by_work in zip(endpoints, timings, *limits, strict=True):
        endpoint.slow_above = (by_prompt, by_work)
        reasons.append(_reason(models, endpoint, mine[:samples], samples))
    return reasons


def _limits(ratios: Sequence[Sequence[float]], ratio: float) -> list[Limits]:
    """For each endpoint how far it may be from the others, and where they are."""
    mids = [median(r) if len(r) >= MIN_OTHERS else None for r in ratios]
    spreads = [
        None if mid is None else median([abs(r - mid) for r in mine])
        for mid, mine in zip(mids, ratios, strict=True)
    ]
    limits = []
    for mid, spread in zip(_medians_of_others(mids), _medians_of_others(spreads), strict=True):
        if mid is None or spread is None:
            limits.append(NOT_SLOW[0])
        else:
            limits.append((max(ratio * mid, mid + MADS * spread), mid))
    return limits


def _reason(models: Models, endpoint: Endpoint, mine: list[Timing], samples: int) -> str:
    """All but one of the last ``samples`` must be slow; one may be luck."""
    if len(mine) < samples:
        return ""
    slow = [t for t in mine if is_slow(models, endpoint, t)]
    if len(slow) < max(1, samples - 1):
        return ""
    usual = max(endpoint.slow_above[0][1], 1e-9)
    times = median([_ratios(models, endpoint, t)[0] / usual for t in slow])
    return (
        f"first byte after {median([t.ttft_s for t in slow]) * 1e3:.3g} ms, {times:.3g} times the "
        f"others' ({len(slow)} of the last {samples} requests)"
    )


def _latest(endpoint: Endpoint, size: int, now_s: float) -> list[Timing]:
    """Its last TTFTs, the newest first; before them the attempts that wait longer than those."""
    done = [Timing._make(t) for t in reversed(endpoint.timings) if now_s - t[4] < FRESH_S]
    usual_s = median([t.ttft_s for t in done]) if done else 0.0
    waiting = [
        Timing(waited_s, a.prompt_tokens, a.work_tokens, a.facts.stream, now_s)
        for a in islice(endpoint.unanswered, size)
        if (waited_s := nominal_s(now_s - a.started_s, a.facts.nbytes, endpoint.signal)) > usual_s
    ]
    return (waiting + done)[:size]


def _ratios(models: Models, endpoint: Endpoint, timing: Timing) -> tuple[float, float]:
    by_prompt, by_work = _both_expected(models, endpoint, timing)
    return timing.ttft_s / by_prompt, timing.ttft_s / by_work


def _both_expected(models: Models, endpoint: Endpoint, timing: Timing) -> tuple[float, float]:
    return (
        expected_s(models, endpoint, timing.prompt_tokens, timing.stream),
        expected_s(models, endpoint, timing.work_tokens, timing.stream),
    )


def _medians_of_others(values: Sequence[float | None]) -> list[float | None]:
    """For each place the lower median of all other known values."""
    known = sorted(v for v in values if v is not None)
    result: list[float | None] = []
    for value in values:
        n = len(known) - (value is not None)
        if n <= 0:
            result.append(None)
            continue
        middle = (n - 1) // 2
        if value is not None and bisect_left(known, value) <= middle:
            middle += 1
        result.append(known[middle])
    return result
