"""An endpoint's expected time to the first byte, learned from past requests.

TTFT = speed * (base + s_per_token * work), where work is the tokens that the endpoint must process
first. Base and slope are a regression over all of a pool, the speed is the endpoint's own: few
samples say how fast an endpoint is, many are needed to tell a prompt's cost from a constant. The
regression forgets and is pulled towards the line through the origin, so that an endpoint whose TTFT
is the same whatever is asked still looks slower the more it has in flight: with constant work that
is the peak-EWMA rule, latency times requests in flight.
"""

from __future__ import annotations

from typing import Final

from trainmesh.serving.decide.types import Candidate, EndpointSignal

__all__ = [
    "DEFAULT_S_PER_TOKEN",
    "RUNNING_SHARE",
    "RUNNING_TOKENS",
    "Shape",
    "Speed",
    "nominal_s",
    "work_tokens",
]

SHAPE_HALF_LIFE_S: Final = 10.0
SHAPE_SAMPLES: Final = 256.0
SPEED_HALF_LIFE_S: Final = 2.0
SPEED_SAMPLES: Final = 32.0
"""The least that a new sample counts is 1 / (1 + this)."""
HABIT_S: Final = 60.0
RIDGE: Final = 0.005
"""Pull towards the origin, in squares of the mean work."""
MIN_SLOPE: Final = 0.25
"""Least share of TTFT that is taken to grow with work."""
RUNNING_TOKENS: Final = 8.0
RUNNING_SHARE: Final = 1 / 128
"""What a request in flight, and a token of it, cost the next one's first byte, in waiting tokens:
an answer that is being written takes one token of each step of the engine, and some memory
traffic for what it has so far."""
DEFAULT_S_PER_TOKEN: Final = 1e-4
MIN_NETWORK_FREE: Final = 0.1
"""Least share of a measured TTFT that isn't network, whatever a probe said of the link."""


def work_tokens(candidate: Candidate, uncached_tokens: float) -> float:
    """Tokens that the candidate would have before it until the first byte of this request."""
    return (
        candidate.waiting_tokens
        + uncached_tokens
        + 1.0
        + RUNNING_TOKENS * candidate.inflight
        + RUNNING_SHARE * candidate.inflight_tokens
    )


def nominal_s(ttft_s: float, nbytes: int, signal: EndpointSignal) -> float:
    """A measured TTFT without the network, at the endpoint's nominal rate."""
    network_s = signal.rtt_s
    if signal.bandwidth_bytes_per_s > 0:
        network_s += nbytes / signal.bandwidth_bytes_per_s
    left_s = ttft_s - network_s
    least_s = MIN_NETWORK_FREE * ttft_s
    return (left_s if left_s > least_s else least_s) * signal.derate


class Shape:
    """A decayed linear regression of TTFT on work, in O(1) a sample."""

    __slots__ = ("_at_s", "_cov", "_n", "_ttft_s", "_var", "_work", "base_s", "s_per_token")

    def __init__(self) -> None:
        self._n = 0.0
        self._work = 0.0
        self._ttft_s = 0.0
        self._var = 0.0
        self._cov = 0.0
        self._at_s = float("-inf")
        self.base_s = 0.0
        self.s_per_token = DEFAULT_S_PER_TOKEN

    @property
    def known(self) -> bool:
        return self._n > 0

    @property
    def s_per_work_token(self) -> float:
        """Mean TTFT over mean work: the rate if all of it were due to work."""
        return self._ttft_s / self._work if self._work else DEFAULT_S_PER_TOKEN

    def predict_s(self, work: float) -> float:
        """TTFT in seconds for that much work at speed 1; above 0."""
        return self.base_s + self.s_per_token * work

    def add(self, work: float, ttft_s: float, now_s: float) -> None:
        """Learns one sample; ``work`` > 0 in tokens, ``ttft_s`` > 0 in seconds."""
        n = self._n
        if n:  # as good as an exponential, and cheaper
            n *= SHAPE_HALF_LIFE_S / (SHAPE_HALF_LIFE_S + now_s - self._at_s)
            if n > SHAPE_SAMPLES:
                n = SHAPE_SAMPLES
        n += 1.0
        part = 1.0 / n
        off_work = work - self._work
        off_ttft_s = ttft_s - self._ttft_s
        mean_work = self._work = self._work + part * off_work
        mean_s = self._ttft_s = self._ttft_s + part * off_ttft_s
        keep = 1.0 - part
        var = self._var = keep * (self._var + part * off_work * off_work)
        cov = self._cov = keep * (self._cov + part * off_work * off_ttft_s)
        self._n = n
        self._at_s = now_s
        origin = mean_s / mean_work
        ridge = RIDGE * mean_work * mean_work
        slope = (cov + ridge * origin) / (var + ridge)
        if slope > origin:
            slope = origin
        elif slope < MIN_SLOPE * origin:
            slope = MIN_SLOPE * origin
        self.s_per_token = slope
        self.base_s = max(mean_s - slope * mean_work, 0.0)


class Speed:
    """One endpoint's TTFT over its pool's; above 1 it is slower."""

    __slots__ = ("_expected_s", "_n", "_settled", "_settled_s", "_ttft_s", "at_s", "habit")

    def __init__(self) -> None:
        self._n = 0.0
        self._ttft_s = 0.0
        self._expected_s = 0.0
        self.at_s = float("-inf")
        self.habit = 1.0
        """Its value over the last minute or so."""
        self._settled = 0
        self._settled_s = float("-inf")

    @property
    def known(self) -> bool:
        return self._n > 0

    @property
    def value(self) -> float:
        return self._ttft_s / self._expected_s if self._n else 1.0

    def add(self, ttft_s: float, expected_s: float, now_s: float) -> float:
        """Learns one sample, both above 0; returns the new value."""
        n = self._n
        if n:
            n *= SPEED_HALF_LIFE_S / (SPEED_HALF_LIFE_S + now_s - self.at_s)
            if n > SPEED_SAMPLES:
                n = SPEED_SAMPLES
        n += 1.0
        part = 1.0 / n
        self._ttft_s += part * (ttft_s - self._ttft_s)
        self._expected_s += part * (expected_s - self._expected_s)
        self._n = n
        self.at_s = now_s
        return self._ttft_s / self._expected_s

    def restart(self) -> None:
        """Forgets all but the next sample."""
        self._n = 0.0
        self._settled = 0

    def settle(self, now_s: float) -> None:
        """Lets the habit follow, if there were samples since the last call."""
        if self.at_s <= self._settled_s:
            return
        since_s = min(now_s - self._settled_s, HABIT_S)
        self._settled_s = now_s
        self._settled += 1
        part = max(1.0 / self._settled, since_s / (since_s + HABIT_S))
        self.habit += part * (self.value - self.habit)
