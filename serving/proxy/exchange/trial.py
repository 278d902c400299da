"""A copy of a request, to see whether an endpoint is well."""

from __future__ import annotations

from trainmesh.serving.adapters.types import Unsupported
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.pool import TRIAL_TIMEOUT_S
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome
from trainmesh.serving.proxy.exchange.attempts import outcome_of, traceparent_of
from trainmesh.serving.proxy.exchange.exchange import Exchange
from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["TrialRequest"]


class TrialRequest:
    """A copy of a request for an endpoint that gets none, to see whether it is well. Its answer is
    thrown away at the first byte; the client has its own from elsewhere."""

    __slots__ = ("_trials", "_upstream", "endpoint", "route")

    def __init__(self, route: ModelRoute, endpoint: Endpoint, trials: set[TrialRequest]) -> None:
        """``trials``: those on their way."""
        self._trials = trials
        self._upstream: Upstream | None = None
        self.route = route
        self.endpoint = endpoint

    def start(self, exchange: Exchange, now_s: float) -> None:
        """Send a copy of ``exchange``; what the endpoint's runtime can't do is no trial."""
        facts = exchange.facts
        try:
            # Its own id, so that nobody takes it for the client's request.
            name = f"{facts.request_id}-trial"
            request = self.route.writer.request(
                self.endpoint, exchange.call, name, traceparent_of(exchange.call)
            )
        except Unsupported:
            return
        attempt = self.route.pool.begin(self.endpoint, facts, AttemptKind.TRIAL, now_s)
        self.route.counters.began(attempt)
        self._upstream = self.route.server(self.endpoint).send(self, attempt, request)
        self._trials.add(self)

    def check(self, now_s: float) -> None:
        """Called now and then: a trial without an answer has failed."""
        upstream = self._upstream
        if upstream is not None and now_s - upstream.attempt.started_s > TRIAL_TIMEOUT_S:
            upstream.lose(AttemptOutcome.TIMEOUT)

    def on_head(self, upstream: Upstream) -> bool:
        return True

    def on_first(self, upstream: Upstream, now_s: float) -> None:
        status = upstream.answer.status
        upstream.drop()
        if status < 300:
            self.route.pool.first_byte(upstream.attempt, now_s)
        self._end(upstream, outcome_of(status), now_s)

    def on_first_byte(self, upstream: Upstream, now_s: float) -> None:
        raise AssertionError("a trial has no client to keep waiting")

    def on_done(self, upstream: Upstream, now_s: float) -> None:
        raise AssertionError("a trial is dropped at its first byte")

    def on_lost(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        self._end(upstream, outcome, now_s)

    def _end(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        self._upstream = None
        self._trials.discard(self)
        self.route.ended(upstream, outcome, now_s)
