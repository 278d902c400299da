"""Whether an endpoint gets requests: a state machine fed with outcomes.

    HEALTHY --faults, slow--> EJECTED --a good trial, or time--> SLOW_START --ramp--> HEALTHY
    HEALTHY --429, 503-----> BACKOFF --a good answer--> HEALTHY

A trial is a copy of a request, so nobody waits for an endpoint that is out. Without traffic there
are no trials; then ``until_s`` ends an ejection, and single requests show its state.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from trainmesh.serving.config.types import EjectConfig
from trainmesh.serving.decide.types import AttemptOutcome

__all__ = ["FAULTS", "EndpointHealth", "HealthState"]

FAULTS = frozenset(
    (
        AttemptOutcome.CONNECT,
        AttemptOutcome.RESET,
        AttemptOutcome.STATUS,
        AttemptOutcome.TIMEOUT,
        AttemptOutcome.STREAM,
        AttemptOutcome.LONE_ERROR,
    )
)
TRIAL_PERIOD_S: Final = 1.0
NEXT_TRIAL_S: Final = 0.1
"""After a good trial, where more than one is wanted."""
TRIAL_GRACE_S: Final = 0.5
"""What trials get before time alone ends an ejection."""
MAX_TRIALS: Final = 3
"""In flight at one endpoint."""
FLAP_S: Final = 60.0
"""Ejections within this time of each other grow longer and want more good trials."""
MAX_EXTRA_TRIALS: Final = 2
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
MIN_RAMP: Final = 0.1

_WHAT: Final = {
    AttemptOutcome.CONNECT: "connection refused or timed out",
    AttemptOutcome.RESET: "connection lost before the first byte",
    AttemptOutcome.STATUS: "status 5xx",
    AttemptOutcome.TIMEOUT: "no answer in time",
    AttemptOutcome.STREAM: "answer broken off",
    AttemptOutcome.LONE_ERROR: "refused what another endpoint answered",
}


class HealthState(StrEnum):
    """See the module's docstring."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    BACKOFF = "backoff"
    SLOW_START = "slow start"


class EndpointHealth:
    """One endpoint's. Methods that return a string return a line about a change, or ""."""

    __slots__ = (
        "_config",
        "_ejections",
        "_good_trials",
        "_next_trial_s",
        "_waits",
        "_wanted_trials",
        "failures",
        "proven",
        "reason",
        "since_s",
        "slow",
        "state",
        "trials_inflight",
        "until_s",
    )

    def __init__(self, config: EjectConfig) -> None:
        self._config = config
        self.state = HealthState.HEALTHY
        self.reason = ""
        self.since_s = float("-inf")
        self.until_s = 0.0
        self.failures = 0
        self.proven = True
        """Whether it has answered since it was let in again."""
        self.slow = False
        """Whether it was ejected for late answers only."""
        self.trials_inflight = 0
        self._ejections = 0
        self._waits = 0
        self._good_trials = 0
        self._wanted_trials = 1
        self._next_trial_s = 0.0

    def configure(self, config: EjectConfig) -> None:
        self._config = config

    def fault(self, outcome: AttemptOutcome, started_s: float) -> str:
        """Counts a fault of an attempt that began at ``started_s``; returns why the endpoint
        should be ejected, or ""."""
        if started_s < self.since_s:
            return ""  # what was under way then says nothing new
        self.failures += 1
        what = _WHAT[outcome]
        if outcome is AttemptOutcome.CONNECT or self.state is HealthState.EJECTED:
            return what
        if self.state is HealthState.SLOW_START and not self.proven:
            return f"{what}, the first time it was asked again"
        if self.failures >= self._config.failures:
            return f"{self.failures} faults in a row, the last: {what}"
        return ""

    def eject(self, reason: str, now_s: float, *, slow: bool = False) -> str:
        """Takes it out, for longer each time within ``FLAP_S``. ``slow``: it answers, but late,
        which takes two good trials to disprove."""
        again = now_s - self.since_s < FLAP_S
        self._ejections = self._ejections + 1 if again else 1
        renewed = self.state is HealthState.EJECTED
        if not renewed:
            extra = min(self._ejections - 1, MAX_EXTRA_TRIALS)
            self._wanted_trials = 1 + slow + extra
            self.slow = slow
        length_s = min(
            self._config.max_s, self._config.base_s * 2.0 ** min(self._ejections - 1, 30)
        )
        self._become(HealthState.EJECTED, reason, now_s, now_s + length_s)
        self._good_trials = 0
        self._next_trial_s = now_s + min(TRIAL_PERIOD_S, 0.8 * length_s)
        return "" if renewed else f"ejected for {length_s:.3g} s: {reason}"

    def backpressure(self, started_s: float, now_s: float, retry_after_s: float) -> str:
        """It answered 429 or 503 to an attempt that began at ``started_s``."""
        if self.state is HealthState.EJECTED or started_s < self.since_s:
            return ""
        self._waits += 1
        wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._waits - 1, 30))
        if retry_after_s > 0:
            wait_s = min(self._config.max_s, max(wait_s, retry_after_s))
        reason = f"backpressure: {self._waits} times 429 or 503 in a row"
        first = self.state is not HealthState.BACKOFF
        self._become(HealthState.BACKOFF, reason, now_s, now_s + wait_s)
        self._next_trial_s = now_s + min(TRIAL_PERIOD_S, wait_s)
        return f"backs off for {wait_s:.3g} s: {reason}" if first else ""

    def answered(self, started_s: float, now_s: float) -> str:
        """A good first byte for an attempt (a trial or not) that began at ``started_s``."""
        self._waits = 0
        if self.state is HealthState.HEALTHY or started_s < self.since_s:
            return ""
        self.proven = True
        if self.state is HealthState.BACKOFF:
            return self._healthy(now_s)
        if self.state is HealthState.EJECTED:
            self._good_trials += 1
            if self._good_trials >= self._wanted_trials:
                return self._slow_start(now_s, "it answers well again")
            self._next_trial_s = now_s + NEXT_TRIAL_S
        return ""

    def tick(self, now_s: float) -> str:
        """What time alone changes."""
        if self.state is HealthState.SLOW_START:
            if self.proven and now_s - self.since_s >= self._config.slow_start_s:
                return self._healthy(now_s)
        elif (
            self.state is HealthState.EJECTED
            and now_s >= self.until_s + TRIAL_GRACE_S
            and not self.trials_inflight
        ):
            self.proven = False
            return self._slow_start(now_s, "the ejection's time is over")
        return ""

    def takes(self, own_inflight: int, draw: float, now_s: float) -> bool:
        """Whether it takes part in a choice while it is neither healthy nor ejected."""
        if self.state is HealthState.BACKOFF:
            return now_s >= self.until_s and own_inflight == 0
        if not self.proven:
            return own_inflight == 0
        ramp = (now_s - self.since_s) / self._config.slow_start_s
        return draw < (ramp if ramp > MIN_RAMP else MIN_RAMP)

    def trial_due(self, now_s: float) -> bool:
        """Whether it should be tried with a copy."""
        return now_s >= self._next_trial_s and self.trials_inflight < MAX_TRIALS

    def tried(self, now_s: float) -> None:
        """It is tried now."""
        self._next_trial_s = now_s + TRIAL_PERIOD_S

    def _slow_start(self, now_s: float, why: str) -> str:
        self._become(HealthState.SLOW_START, "slow start", now_s, now_s + self._config.slow_start_s)
        self.failures = 0
        return f"let in again with a slow start: {why}"

    def _healthy(self, now_s: float) -> str:
        self._become(HealthState.HEALTHY, "", now_s, 0.0)
        return "healthy"

    def _become(self, state: HealthState, reason: str, now_s: float, until_s: float) -> None:
        self.state = state
        self.reason = reason
        self.since_s = now_s
        self.until_s = until_s
