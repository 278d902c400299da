"""Keeps the estimates that choices go by fresh while nothing is asked.

An endpoint that looked slow gets no requests, so nothing would ever say that it is well again: a
stale estimate moves to what is usual for the endpoint, and that to the pool's median, so the
endpoint is asked again: soon after a bad moment, now and then if it is always slower. One that
lets requests wait gets worse while they wait, not only when they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import NamedTuple

from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.estimate import DEFAULT_S_PER_TOKEN, Estimate

__all__ = ["PoolModel", "refresh"]

FRESH_S = 0.5
HALF_LIFE_S = 1.5
HABIT_HALF_LIFE_S = 10.0

Model = tuple[float, float]


class PoolModel(NamedTuple):
    """Medians of a pool."""

    base_s: float = 0.0
    s_per_token: float = DEFAULT_S_PER_TOKEN
    s_per_work_token: float = DEFAULT_S_PER_TOKEN
    """TTFT over all work, whatever the base is."""


def refresh(endpoints: Sequence[Endpoint], now_s: float) -> tuple[PoolModel, PoolModel]:
    """Sets ``models`` of each endpoint; returns the pool's for answers in one piece and for
    streams. A kind that nobody was asked for takes the other's."""
    pools = [_pool(endpoints, kind, now_s) for kind in (0, 1)]
    unknown = PoolModel()
    known = (pools[0] or pools[1] or unknown, pools[1] or pools[0] or unknown)
    for endpoint in endpoints:
        for kind in (0, 1):
            endpoint.estimates[kind].settle(now_s)
            endpoint.models[kind] = _fade(endpoint.estimates[kind], known[kind][:2], now_s)
        _add_lag(endpoint, now_s)
    return known


def _pool(endpoints: Sequence[Endpoint], kind: int, now_s: float) -> PoolModel | None:
    """The medians of those asked within a half-life; of all where there is none."""
    known = [e.estimates[kind] for e in endpoints if e.estimates[kind].known]
    if not known:
        return None
    fresh = [e for e in known if now_s - e.at_s < FRESH_S + HALF_LIFE_S] or known
    return PoolModel(
        median_low([e.base_s for e in fresh]),
        median_low([e.s_per_token for e in fresh]),
        median_low([e.s_per_work_token for e in fresh]),
    )


def _fade(estimate: Estimate, pool: Model, now_s: float) -> Model:
    if not estimate.known:
        return pool
    stale_s = now_s - estimate.at_s - FRESH_S
    if stale_s <= 0:
        return estimate.base_s, estimate.s_per_token
    habit = _between(pool, estimate.habit, 0.5 ** (stale_s / HABIT_HALF_LIFE_S))
    own = (estimate.base_s, estimate.s_per_token)
    return _between(habit, own, 0.5 ** (stale_s / HALF_LIFE_S))


def _between(one: Model, other: Model, share: float) -> Model:
    """``share`` of the other."""
    return one[0] + share * (other[0] - one[0]), one[1] + share * (other[1] - one[1])


def _add_lag(endpoint: Endpoint, now_s: float) -> None:
    """Adds how much longer than expected its oldest attempt has waited."""
    oldest = next(iter(endpoint.unanswered), None)
    if oldest is None:
        return
    kind = oldest.facts.stream
    base_s, s_per_token = endpoint.models[kind]
    nominal_s = (now_s - oldest.started_s - endpoint.rtt_s) * endpoint.derate
    lag_s = nominal_s - base_s - s_per_token * oldest.work_tokens
    if lag_s > 0:
        endpoint.models[kind] = (base_s + lag_s, s_per_token)
