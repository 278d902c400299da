"""Where a request has been sent: its attempts, and when another one is made."""

from __future__ import annotations

import math
from time import perf_counter
from typing import Final

from trainmesh.serving.adapters.types import Unsupported
from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.health import FAULTS, HealthState
from trainmesh.serving.decide.retries.client_errors import is_client_error
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome, RequestFacts
from trainmesh.serving.observe.trace import AttemptTrace, RequestTrace
from trainmesh.serving.proxy.context import WorkerContext
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import TRACEPARENT
from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.proxy.upstream.connection import Sink, Upstream
from trainmesh.serving.refusal import Refusal, RequestRefused

__all__ = ["NoRoom", "RequestAttempts", "outcome_of", "traceparent_of"]

_FRESH_S: Final = 1.0
"""Hardly anybody closes a connection that was used so lately: servers wait for 5 s and more, though
some close after a number of requests."""
_FULL: Final = (429, 503, 529)


def traceparent_of(call: Call) -> bytes:
    """The client's place in a trace, to be passed on; empty where it told none."""
    return call.special.get(TRACEPARENT, b"")


def outcome_of(status: int) -> AttemptOutcome:
    """What a status says of the endpoint."""
    if status < 300:
        return AttemptOutcome.OK
    if status in _FULL:
        return AttemptOutcome.BACKPRESSURE
    return AttemptOutcome.CLIENT_ERROR if is_client_error(status) else AttemptOutcome.STATUS


class NoRoom(Exception):
    """A request that was let in finds every endpoint full, and has to wait."""


class RequestAttempts:
    """Of one request. ``sink`` of its methods: who hears of what endpoints answer.

    Args:
        context: of the worker.
        route: to the model.
        call: the request as it came.
        facts: the request as it is decided about.
        allowed: indices of the endpoints that its tenant may use; None: all.
    """

    __slots__ = ("_allowed", "_call", "_context", "_facts", "_spans", "live", "made",
                 "refusing", "route", "trace", "tried")  # fmt: skip

    def __init__(
        self,
        context: WorkerContext,
        route: ModelRoute,
        call: Call,
        facts: RequestFacts,
        allowed: frozenset[int] | None,
    ) -> None:
        self._context = context
        self.route = route
        self._call = call
        self._facts = facts
        self._allowed = allowed
        self._spans: dict[Attempt, AttemptTrace] = {}
        self.trace: RequestTrace | None = None
        self.made = 0
        self.tried: list[Endpoint] = []
        self.live: list[Upstream] = []
        """Their answers may still be wanted."""
        self.refusing: Upstream | None = None
        """It has answered that the request is wrong, which another endpoint is asked about."""

    def trial(self, now_s: float) -> Endpoint | None:
        """An endpoint to be tried by a copy (``Pool.trial``)."""
        return self.route.pool.trial(self._facts, now_s, sent_to=self.tried, allowed=self._allowed)

    def choose(self, now_s: float) -> RoutingChoice:
        """Ask the pool, and see how long it takes."""
        begun_s = perf_counter()
        choice = self.route.pool.choose(self._facts, now_s, tried=self.tried, allowed=self._allowed)
        took_s = perf_counter() - begun_s
        context = self._context
        context.counters.decided(took_s, context.config.limits.decision_s)
        return choice

    def send(
        self,
        sink: Sink,
        choice: RoutingChoice,
        endpoint: Endpoint,
        kind: AttemptKind,
        now_s: float,
        *,
        surely: bool = False,
    ) -> None:
        """Send the request to ``endpoint``; ``surely``: over a new connection.

        Raises:
            Unsupported: its runtime can't do what is asked.
        """
        self.tried.append(endpoint)
        name = self._facts.request_id + ("-hedge" if kind is AttemptKind.HEDGE else "")
        span = self.trace.attempt(endpoint.name, kind.value) if self.trace is not None else None
        traceparent = span.traceparent if span is not None else traceparent_of(self._call)
        request = self.route.writer.request(endpoint, self._call, name, traceparent)
        attempt = self.route.pool.begin(endpoint, self._facts, kind, now_s, choice.arm)
        self.route.counters.began(attempt)
        self._context.recorder.began(choice, attempt)
        if span is not None:
            self._spans[attempt] = span
        self.made += 1
        server = self.route.server(endpoint)
        idle_s = 0.0 if surely else math.inf
        if self.made >= self.route.pool.config.retry.attempts:
            # No other follows. One that is new for each request would be dear, where all have one.
            idle_s = _FRESH_S if self.made == 1 else 0.0
        self.live.append(server.send(sink, attempt, request, idle_s=idle_s))

    def first(self, sink: Sink, now_s: float) -> None:
        """Send it for the first time.

        Raises:
            RequestRefused: no endpoint can take it.
            NoRoom: one could, but all that could are full.
        """
        unsupported: Unsupported | None = None
        while not self.live:
            choice = self.choose(now_s)
            if choice.endpoint is None:
                if unsupported is not None:
                    raise RequestRefused(_refused(unsupported))
                if choice.full:
                    raise NoRoom
                self.route.counters.unroutable()
                self._context.recorder.none_found(choice, self._facts)
                raise RequestRefused(_unroutable(choice, self._facts.model))
            try:
                self.send(sink, choice, choice.endpoint, AttemptKind.FIRST, now_s)
            except Unsupported as error:
                unsupported = error

    def hedge(self, sink: Sink, now_s: float) -> None:
        """Send it a second time, elsewhere, if that is allowed and one attempt is under way."""
        if not self.live:
            return
        pool = self.route.pool
        if not pool.may_hedge(self._facts, now_s):
            self.route.counters.hedge_denied()
            return
        choice = self.choose(now_s)
        if choice.endpoint is None:
            return
        try:
            self.send(sink, choice, choice.endpoint, AttemptKind.HEDGE, now_s)
        except Unsupported:
            return
        self.route.counters.hedged(self._facts.prompt_tokens + self._facts.output_tokens)

    def retry(self, sink: Sink, now_s: float) -> bool:
        """Send it again, elsewhere; False if that can't be."""
        pool = self.route.pool
        if self.made >= pool.config.retry.attempts:
            return False
        choice = self.choose(now_s)
        if choice.endpoint is None:
            return False
        if not pool.may_retry(self._facts, self.made, now_s):
            self.route.counters.retry_denied()
            return False
        return self.send_again(sink, choice, choice.endpoint, now_s)

    def send_again(
        self,
        sink: Sink,
        choice: RoutingChoice,
        endpoint: Endpoint,
        now_s: float,
        *,
        surely: bool = False,
    ) -> bool:
        self.route.counters.retried()
        try:
            self.send(sink, choice, endpoint, AttemptKind.RETRY, now_s, surely=surely)
        except Unsupported:
            return False
        return True

    def again(self, sink: Sink, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> bool:
        """Send it again after ``outcome``; False if that can't be."""
        if outcome is AttemptOutcome.CLOSED:
            return self._replace(sink, upstream, now_s)
        return self.retry(sink, now_s)

    def _replace(self, sink: Sink, upstream: Upstream, now_s: float) -> bool:
        """Its kept connection was closed: send the request again, which counts as an attempt, as it
        may have been carried out. Elsewhere if that can be: the endpoint may be gone."""
        if self.made >= self.route.pool.config.retry.attempts:
            return False
        choice = self.choose(now_s)
        if choice.endpoint is None or choice.endpoint.health.state is HealthState.EJECTED:
            self.tried.remove(upstream.attempt.endpoint)
            choice = self.choose(now_s)
        return choice.endpoint is not None and self.send_again(
            sink, choice, choice.endpoint, now_s, surely=True
        )

    # -- endings ---------------------------------------------------------------------------

    def abandon_all(self, now_s: float) -> None:
        """No answer is wanted any more."""
        for upstream in tuple(self.live):
            self.abandon(upstream, AttemptOutcome.CANCELLED, now_s)
        if self.refusing is not None:
            self.abandon(self.refusing, AttemptOutcome.CLIENT_ERROR, now_s)
            self.refusing = None

    def abandon(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        """Its answer is not wanted any more."""
        upstream.drop()
        self.end(upstream, outcome, now_s)

    def end(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        """An attempt is over."""
        if upstream in self.live:
            self.live.remove(upstream)
        upstream.outcome = outcome
        if (span := self._spans.pop(upstream.attempt, None)) is not None:
            failed = outcome in FAULTS
            span.end(outcome.value, upstream.answer.status, failed=failed)
        self.route.ended(upstream, outcome, now_s)
        self._context.recorder.ended(upstream, outcome, now_s)

    def first_byte(self, upstream: Upstream) -> None:
        """The body of an attempt's answer begins, which its client gets."""
        if (span := self._spans.get(upstream.attempt)) is not None:
            span.first_byte()


def _refused(error: Unsupported) -> Refusal:
    return Refusal(400, str(error), code="unsupported", param=error.param or None)


def _unroutable(choice: RoutingChoice, model: str) -> Refusal:
    return Refusal(
        503, f"no endpoint of {model} can take it: {choice.reason}", code="no_endpoint",
        retry_after_s=1,
    )  # fmt: skip
