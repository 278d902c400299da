"""Keeps account of attempts, and learns from them."""

from __future__ import annotations

from trainmesh.serving.decide.endpoint import Attempt, Endpoint, Timing
from trainmesh.serving.decide.endpoint_states import EndpointStates
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.learn import outliers
from trainmesh.serving.decide.learn.estimate import nominal_s, work_tokens
from trainmesh.serving.decide.learn.forecast import Forecast
from trainmesh.serving.decide.learn.prefix_cache_model import PrefixCacheModel
from trainmesh.serving.decide.learn.traffic_stats import TrafficStats
from trainmesh.serving.decide.policies.shadow import Versus
from trainmesh.serving.decide.retries.retry_budgets import RetryBudgets
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    Context,
    RequestFacts,
)

__all__ = ["AttemptTracker", "Learned"]

GIVEN_UP = 1.5
"""What an attempt would have taken, over what it had taken when it was given up: the mean of what
is beyond a value in a heavy tail (Pareto's, with exponent 3)."""


class Learned:
    """What a pool has learned from requests, which outlives it."""

    __slots__ = ("forecast", "prefix_cache", "traffic_stats")

    def __init__(self) -> None:
        self.prefix_cache = PrefixCacheModel()
        self.traffic_stats = TrafficStats()
        self.forecast = Forecast()


class AttemptTracker:
    """A pool's; see there for what the methods mean."""

    def __init__(
        self,
        endpoint_states: EndpointStates,
        learned: Learned,
        retry_budgets: RetryBudgets,
        tested: Versus | None,
    ) -> None:
        """``tested``: the A/B test to be told of each TTFT, if there is one."""
        self._endpoint_states = endpoint_states
        self._versus = tested
        self.learned = learned
        self.prefix_cache = learned.prefix_cache
        self.traffic_stats = learned.traffic_stats
        self.forecast = learned.forecast
        self.retry_budgets = retry_budgets
        self.context = Context()
        self.kind = False
        """Of answers that the endpoints' ``base_s`` and ``s_per_token`` are for."""

    def begin(
        self, endpoint: Endpoint, facts: RequestFacts, kind: AttemptKind, now_s: float, arm: int = 0
    ) -> Attempt:
        """Counts an attempt that is being sent; ``arm`` of the choice."""
        prompt = facts.prompt_tokens
        cached = 0
        if facts.blocks:
            self.prefix_cache.prepare(facts, self._endpoint_states.endpoints)
            cached = endpoint.cached_tokens
            if kind is not AttemptKind.TRIAL:
                self.prefix_cache.sent(endpoint, facts, first=kind is AttemptKind.FIRST)
        full = work_tokens(endpoint, prompt)
        work = full - cached if self.context.prefix_pays else full
        attempt = Attempt(endpoint, facts, kind, now_s, cached, full, work, arm)
        tokens = attempt.tokens
        endpoint.count(1, tokens, prompt)
        endpoint.unanswered[attempt] = None
        if kind is AttemptKind.FIRST:
            self.retry_budgets.asked(tokens)
            self.traffic_stats.asked(tokens)
        if kind is AttemptKind.TRIAL:
            endpoint.health.trials_inflight += 1
        else:
            endpoint.asked_s = now_s
        return attempt

    def publish_speeds(self, kind: bool) -> None:
        """Make the endpoints' ``base_s`` and ``s_per_token`` those of answers of a kind."""
        self.kind = kind
        for endpoint in self._endpoint_states.endpoints:
            endpoint.base_s, endpoint.s_per_token = endpoint.models[kind]

    def first_byte(self, attempt: Attempt, now_s: float) -> None:
        """The first byte of a good answer's body (2xx) is there."""
        if attempt.ended or attempt.first_byte_s:
            return
        attempt.first_byte_s = now_s
        endpoint = attempt.endpoint
        self._answered(attempt)
        ttft_s = max(now_s - attempt.started_s, 1e-6)
        stream = attempt.facts.stream
        prompt = attempt.prompt_tokens
        nominal = nominal_s(ttft_s, attempt.facts.nbytes, endpoint.signal)
        state = endpoint.health.state
        if attempt.kind is AttemptKind.TRIAL and state is HealthState.HEALTHY:
            self.forecast.reconsider(endpoint, stream, attempt.work_tokens, nominal)
        self._learn(attempt, nominal, now_s)
        if state is not HealthState.EJECTED:
            endpoint.timings.append((nominal, prompt, attempt.work_tokens, stream, now_s))
        if state is not HealthState.HEALTHY:
            timing = Timing(nominal, prompt, attempt.work_tokens, stream, now_s)
            self._judge_trial(attempt, timing, now_s)
        if attempt.kind is not AttemptKind.TRIAL:
            self.retry_budgets.first_byte(prompt, stream, ttft_s)
            self.traffic_stats.first_byte(ttft_s)
            if self._versus is not None:
                expected_s = outliers.expected_s(self.forecast.models, endpoint, prompt, stream)
                self._versus.first_byte(attempt.arm, ttft_s, ttft_s / expected_s)

    def end(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        now_s: float,
        output_tokens: int = 0,
        retry_after_s: float = 0.0,
    ) -> None:
        """Counts an attempt out; a second call does nothing.

        Args:
            attempt: from ``begin``.
            outcome: how it ended.
            now_s: monotonic seconds.
            output_tokens: what the answer had, 0 if unknown.
            retry_after_s: what the endpoint asked for with a 429 or 503, 0 if nothing.
        """
        if attempt.ended:
            return
        if outcome is AttemptOutcome.OK and not attempt.first_byte_s:
            self.first_byte(attempt, now_s)
        attempt.ended = True
        endpoint = attempt.endpoint
        endpoint.count(-1, -attempt.tokens, 0)
        if not attempt.first_byte_s:
            self._answered(attempt)
        if attempt.kind is AttemptKind.TRIAL:
            endpoint.health.trials_inflight -= 1
            if not attempt.first_byte_s:
                self.retry_budgets.cost_nothing(attempt.facts)
        if outcome is AttemptOutcome.OK:
            endpoint.health.failures = 0
            if output_tokens:
                self.traffic_stats.ended(output_tokens)
        else:
            self._ended_badly(attempt, outcome, now_s, retry_after_s)

    def _answered(self, attempt: Attempt) -> None:
        """It waits no longer for its first byte."""
        endpoint = attempt.endpoint
        endpoint.unanswered.pop(attempt, None)
        endpoint.count(0, 0, -attempt.prompt_tokens)

    def _learn(self, attempt: Attempt, nominal: float, now_s: float) -> None:
        """``nominal``: the TTFT in seconds without the network, at the nominal rate."""
        endpoint = attempt.endpoint
        stream = attempt.facts.stream
        if attempt.facts.blocks:
            self.prefix_cache.answered(attempt, nominal, now_s)
        self.forecast.add(endpoint, stream, attempt.work_tokens, nominal, now_s)
        if stream == self.kind:
            endpoint.base_s, endpoint.s_per_token = endpoint.models[stream]

    def _judge_trial(self, attempt: Attempt, timing: Timing, now_s: float) -> None:
        """A good answer of an endpoint that isn't in full service."""
        endpoint = attempt.endpoint
        health = endpoint.health
        if health.state is HealthState.EJECTED and health.slow:
            if attempt.started_s < health.since_s:
                return
            if outliers.is_slow(self.forecast.models, endpoint, timing):
                self._endpoint_states.eject(endpoint, health.reason, now_s, slow=True)
                return
        was_slow = health.state is HealthState.EJECTED and health.slow
        self._endpoint_states.record_change(endpoint, health.answered(attempt.started_s, now_s))
        if was_slow and health.state is not HealthState.EJECTED:
            endpoint.forget_speed()

    def _ended_badly(
        self, attempt: Attempt, outcome: AttemptOutcome, now_s: float, retry_after_s: float
    ) -> None:
        endpoint = attempt.endpoint
        if outcome is AttemptOutcome.CANCELLED:
            if not attempt.first_byte_s:
                self._learn_at_least(attempt, now_s)
        elif outcome in (AttemptOutcome.SILENT, AttemptOutcome.CLOSED):
            pass  # neither says how the endpoint is
        elif outcome is AttemptOutcome.CLIENT_ERROR:
            # Alone it says nothing of the endpoint: one that has lost its model answers so too.
            if attempt.confirmed:
                endpoint.health.failures = 0
                self._endpoint_states.record_change(
                    endpoint, endpoint.health.answered(attempt.started_s, now_s)
                )
        elif outcome is AttemptOutcome.BACKPRESSURE:
            self._endpoint_states.backpressure(endpoint, attempt.started_s, now_s, retry_after_s)
        elif self._endpoint_states.fault(endpoint, outcome, attempt.started_s, now_s):
            self.prefix_cache.forget(endpoint, self._endpoint_states.endpoints)

    def _learn_at_least(self, attempt: Attempt, now_s: float) -> None:
        """It was given up: what it waited is the least that it would have taken."""
        endpoint = attempt.endpoint
        stream = attempt.facts.stream
        prompt, work = attempt.prompt_tokens, attempt.work_tokens
        waited_s = max(now_s - attempt.started_s, 1e-6)
        waited_s = nominal_s(waited_s, attempt.facts.nbytes, endpoint.signal)
        likely_s = GIVEN_UP * waited_s
        own_s = self.forecast.predict_s(endpoint, stream, work)
        if waited_s > own_s:
            self._learn(attempt, likely_s, now_s)
        usual_s = outliers.expected_s(self.forecast.models, endpoint, prompt, stream)
        if waited_s > usual_s + outliers.FLOOR_S:
            endpoint.timings.append((max(likely_s, own_s), prompt, work, stream, now_s))
