"""The cost of a pool's requests, and the present speed of each endpoint.

An endpoint that looked slow gets no requests, so nothing would ever say that it is well again: a
stale speed moves to what is usual for the endpoint, and that to the pool's, so the endpoint is
asked again: soon after a bad moment, now and then if it is always slower. One that lets requests
wait gets worse while they wait, not only when they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import median_low
from typing import Final, NamedTuple

from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.learn.estimate import DEFAULT_S_PER_TOKEN, Shape, Speed

__all__ = ["Forecast", "PoolModel"]

FRESH_S: Final = 0.5
BETTER: Final = 1.5
HALF_LIFE_S: Final = 1.5
HABIT_HALF_LIFE_S: Final = 10.0
ILL: Final = 4.0


class PoolModel(NamedTuple):
    """What a request takes at an endpoint of speed 1."""

    base_s: float = 0.0
    s_per_token: float = DEFAULT_S_PER_TOKEN
    s_per_work_token: float = DEFAULT_S_PER_TOKEN
    """TTFT over all work, whatever the base is."""


class Forecast:
    """Learns the two shapes of a pool (of answers in one piece, of streams), and sets ``models``
    of its endpoints."""

    __slots__ = ("_middle", "_shapes", "models")

    def __init__(self) -> None:
        self._shapes = (Shape(), Shape())
        self._middle = [1.0, 1.0]
        """The median speed, which shapes are learned at."""
        self.models = (PoolModel(), PoolModel())

    def add(
        self, endpoint: Endpoint, stream: bool, work: float, nominal_s: float, now_s: float
    ) -> None:
        """Learns a TTFT (without the network)."""
        shape = self._shapes[stream]
        if not shape.known:
            shape.add(work, nominal_s, now_s)
        expected_s = shape.base_s + shape.s_per_token * work
        value = endpoint.speeds[stream].add(nominal_s, expected_s, now_s)
        shape.add(work, nominal_s * _for_shape(value / self._middle[stream]), now_s)
        endpoint.models[stream] = (value * shape.base_s, value * shape.s_per_token)

    def reconsider(self, endpoint: Endpoint, stream: bool, work: float, nominal_s: float) -> None:
        """A TTFT of an endpoint that nothing was sent to for a while: if it is far better than
        expected, what was learned before is of no use any more."""
        if nominal_s * BETTER < self.predict_s(endpoint, stream, work):
            endpoint.speeds[stream].restart()

    def predict_s(self, endpoint: Endpoint, stream: bool, work: float) -> float:
        """The endpoint's TTFT without the network, as of its last samples."""
        return self._shapes[stream].predict_s(work) * endpoint.speeds[stream].value

    def refresh(self, endpoints: Sequence[Endpoint], now_s: float) -> None:
        """Lets time pass; to be called every 0.1 s."""
        for endpoint in endpoints:
            for speed in endpoint.speeds:
                speed.settle(now_s)
        self._middle = [_middle([e.speeds[kind] for e in endpoints], now_s) for kind in (0, 1)]
        self.models = (self._model(0), self._model(1))
        for endpoint in endpoints:
            for kind in (0, 1):
                speed = endpoint.speeds[kind]
                if not speed.known:  # one that is slow with streams is slow without
                    speed = endpoint.speeds[1 - kind]
                value = _fade(speed, self._middle[kind], now_s)
                model = self.models[kind]
                endpoint.models[kind] = (value * model.base_s, value * model.s_per_token)
            _add_lag(endpoint, now_s)

    def _model(self, kind: int) -> PoolModel:
        """A kind that nobody was asked for takes the other's shape."""
        shape = self._shapes[kind]
        if not shape.known:
            shape = self._shapes[1 - kind]
        return PoolModel(shape.base_s, shape.s_per_token, shape.s_per_work_token)


def _for_shape(slower: float) -> float:
    """What to multiply a TTFT with, so that it says what the work costs.

    Half of how an endpoint differs is put down to its speed. Were it all, an endpoint that is
    asked little, and so takes long for its work where TTFT is constant, would be slow for ever by
    its own proof; were it none, a slow one's prompts would look dear everywhere. One that differs
    by more than hardware does is ill and says nothing about work.
    """
    if slower > ILL or slower * ILL < 1.0:
        return 1.0 / slower
    return 1.0 / sqrt(slower)


def _middle(speeds: Sequence[Speed], now_s: float) -> float:
    """The median of those asked within a half-life; of all where there is none."""
    known = [s for s in speeds if s.known]
    fresh = [s for s in known if now_s - s.at_s < FRESH_S + HALF_LIFE_S] or known
    return median_low([s.value for s in fresh]) if fresh else 1.0


def _fade(speed: Speed, middle: float, now_s: float) -> float:
    if not speed.known:
        return middle
    stale_s = now_s - speed.at_s - FRESH_S
    if stale_s <= 0:
        return speed.value
    old: float = 0.5 ** (stale_s / HABIT_HALF_LIFE_S)
    recent: float = 0.5 ** (stale_s / HALF_LIFE_S)
    habit = middle + (speed.habit - middle) * old
    return habit + (speed.value - habit) * recent


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
