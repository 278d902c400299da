"""One request: where it is sent, again or twice if need be, and how its answer reaches the client.

An exchange begins when the request is complete and ends when the last byte of its answer is with
the client's connection, or the client is gone. Until the first byte of an answer it may be retried
and hedged; from then on one endpoint has won, and what it sends is forwarded.
"""

from __future__ import annotations

import math
from time import monotonic, perf_counter
from typing import Final, Protocol

from trainmesh.serving.adapters.types import Unsupported
from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.health import FAULTS, HealthState
from trainmesh.serving.decide.pool import TRIAL_TIMEOUT_S
from trainmesh.serving.decide.retries.client_errors import is_client_error
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    RequestFacts,
)
from trainmesh.serving.observe.trace import AttemptTrace, RequestTrace
from trainmesh.serving.proxy.context import WorkerContext
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import TRACEPARENT
from trainmesh.serving.proxy.replies.answers import Refusal, interrupted_event
from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.proxy.upstream.answer import Client
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["Exchange", "ExchangeClient", "ExchangeOwner", "NoRoom", "TrialRequest"]

_FRESH_S: Final = 1.0
"""Hardly anybody closes a connection that was used so lately: servers wait for 5 s and more, though
some close after a number of requests."""
_FULL: Final = (429, 503, 529)
_IN_USE: Final = (HealthState.HEALTHY, HealthState.SLOW_START)
"""Endpoints that a request is sent to which another one refused."""


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


def _refused(error: Unsupported) -> Refusal:
    return Refusal(400, str(error), code="unsupported", param=error.param or None)


class NoRoom(Exception):
    """A request that was let in finds every endpoint full, and has to wait."""


class ExchangeClient(Protocol):
    """Whose request it is (``client.connection.ClientConnection``)."""

    paused: bool

    def serve(self, exchange: Exchange) -> None:
        """``exchange`` answers the current request."""
        ...

    def begin_answer(self, exchange: Exchange, upstream: Upstream) -> Client | None:
        """Prepare the head of an answer, which goes to what this returns, before the body; None
        if it isn't ``exchange``'s turn."""
        ...

    def write(self, exchange: Exchange, data: bytes) -> None:
        """Part of an answer that ``exchange`` makes itself."""
        ...

    def refuse(self, exchange: Exchange, refusal: Refusal, head: bytes) -> None:
        """Answer with an error of ours; ``head``: header fields."""
        ...

    def end_answer(self, exchange: Exchange, *, close: bool) -> None:
        """The answer is complete, or can't be completed (``close``)."""
        ...


class ExchangeOwner(Protocol):
    """Who keeps account of requests on their way (``in_flight.InFlight``)."""

    def try_out(self, endpoint: Endpoint, exchange: Exchange, now_s: float) -> None:
        """Send a copy of ``exchange`` to an endpoint that gets none."""
        ...

    def ended(self, exchange: Exchange, status: int, now_s: float) -> None:
        """It is over."""
        ...


class Exchange:
    """A request on its way. Called by one event loop only."""

    __slots__ = ("_attempts", "_context", "_live", "_owner", "_refusing", "_spans", "allowed",
                 "call", "client", "estimates", "facts", "hedge_at_s", "route", "started_s",
                 "trace", "tried", "winner")  # fmt: skip

    def __init__(
        self,
        context: WorkerContext,
        owner: ExchangeOwner,
        route: ModelRoute,
        client: ExchangeClient,
        call: Call,
        facts: RequestFacts,
        allowed: frozenset[int] | None,
    ) -> None:
        self._context = context
        self._owner = owner
        self.route = route
        self.allowed = allowed
        """Indices of the endpoints that the tenant may use; None: all."""
        self.client: ExchangeClient | None = client
        self.call = call
        self.facts = facts
        self.estimates = (facts.prompt_tokens, 0, 0)
        """Tokens of the prompt as text, as media and as counted ones, before any correction."""
        self.started_s = call.received_s
        self.hedge_at_s = 0.0
        self.trace: RequestTrace | None = None
        self._spans: dict[Attempt, AttemptTrace] = {}
        self.tried: list[Endpoint] = []
        self.winner: Upstream | None = None
        self._attempts = 0
        self._live: list[Upstream] = []
        self._refusing: Upstream | None = None
        """It has answered that the request is wrong, which another endpoint is asked about."""

    @property
    def awaits_answer(self) -> bool:
        """Its client waits, and no endpoint has answered."""
        return self.winner is None and self.client is not None

    @property
    def waits(self) -> bool:
        """It has not been sent to any endpoint yet."""
        return not self._attempts

    # -- attempts --------------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """Send it for the first time.

        Raises:
            Refusal: no endpoint can take it.
            NoRoom: one could, but all that could are full.
        """
        unsupported: Unsupported | None = None
        while not self._live:
            choice = self._choose(now_s)
            if choice.endpoint is None:
                if choice.full and unsupported is None:
                    raise NoRoom
                raise _refused(unsupported) if unsupported else self._unroutable(choice)
            try:
                self._send(choice, choice.endpoint, AttemptKind.FIRST, now_s)
            except Unsupported as error:
                unsupported = error
        pool = self.route.pool
        self.hedge_at_s = now_s + pool.hedge_delay_s(self.facts)
        if self.hedge_at_s < math.inf:
            self.route.hedges.expect(self)
        ejected = pool.trial(self.facts, now_s, sent_to=self.tried, allowed=self.allowed)
        if ejected is not None:
            self._owner.try_out(ejected, self, now_s)

    def hedge(self, now_s: float) -> None:
        """It takes longer than others did: send it a second time, elsewhere, if that is allowed."""
        if self.winner is not None or self.client is None or not self._live:
            return
        pool = self.route.pool
        if not pool.may_hedge(self.facts, now_s):
            self.route.counters.hedge_denied()
            return
        choice = self._choose(now_s)
        if choice.endpoint is None:
            return
        try:
            self._send(choice, choice.endpoint, AttemptKind.HEDGE, now_s)
        except Unsupported:
            return
        self.route.counters.hedged(self.facts.prompt_tokens + self.facts.output_tokens)

    def _choose(self, now_s: float) -> RoutingChoice:
        """Ask the pool, and see how long it takes."""
        begun_s = perf_counter()
        choice = self.route.pool.choose(self.facts, now_s, tried=self.tried, allowed=self.allowed)
        took_s = perf_counter() - begun_s
        context = self._context
        context.counters.decided(took_s, context.config.limits.decision_s)
        return choice

    def _send(
        self,
        choice: RoutingChoice,
        endpoint: Endpoint,
        kind: AttemptKind,
        now_s: float,
        *,
        surely: bool = False,
    ) -> None:
        self.tried.append(endpoint)
        name = self.facts.request_id + ("-hedge" if kind is AttemptKind.HEDGE else "")
        span = self.trace.attempt(endpoint.name, kind.value) if self.trace is not None else None
        traceparent = span.traceparent if span is not None else traceparent_of(self.call)
        request = self.route.writer.request(endpoint, self.call, name, traceparent)
        attempt = self.route.pool.begin(endpoint, self.facts, kind, now_s, choice.arm)
        self.route.counters.began(attempt)
        self._context.recorder.began(choice, attempt)
        if span is not None:
            self._spans[attempt] = span
        self._attempts += 1
        server = self.route.server(endpoint)
        idle_s = 0.0 if surely else math.inf
        if self._attempts >= self.route.pool.config.retry.attempts:
            # No other follows. One that is new for each request would be dear, where all have one.
            idle_s = _FRESH_S if self._attempts == 1 else 0.0
        self._live.append(server.send(self, attempt, request, idle_s=idle_s))

    def _retry(self, now_s: float) -> bool:
        """Send it again, elsewhere; False if that can't be."""
        pool = self.route.pool
        if self._attempts >= pool.config.retry.attempts:
            return False
        choice = self._choose(now_s)
        if choice.endpoint is None:
            return False
        if not pool.may_retry(self.facts, self._attempts, now_s):
            self.route.counters.retry_denied()
            return False
        return self._send_again(choice, choice.endpoint, now_s)

    def _send_again(
        self, choice: RoutingChoice, endpoint: Endpoint, now_s: float, *, surely: bool = False
    ) -> bool:
        self.route.counters.retried()
        try:
            self._send(choice, endpoint, AttemptKind.RETRY, now_s, surely=surely)
        except Unsupported:
            return False
        return True

    def _again(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> bool:
        if outcome is AttemptOutcome.CLOSED:
            return self._replace(upstream, now_s)
        return self._retry(now_s)

    def _replace(self, upstream: Upstream, now_s: float) -> bool:
        """Its kept connection was closed: send the request again, which counts as an attempt, as it
        may have been carried out. Elsewhere if that can be: the endpoint may be gone."""
        if self._attempts >= self.route.pool.config.retry.attempts:
            return False
        choice = self._choose(now_s)
        if choice.endpoint is None or choice.endpoint.health.state is HealthState.EJECTED:
            self.tried.remove(upstream.attempt.endpoint)
            choice = self._choose(now_s)
        return choice.endpoint is not None and self._send_again(
            choice, choice.endpoint, now_s, surely=True
        )

    def _ask_another(self, upstream: Upstream, now_s: float) -> bool:
        """``upstream`` says that the request is wrong: wait with that until another endpoint has
        said what it thinks; False if it is to be believed at once."""
        if self._refusing is not None or upstream.without_length:
            return False
        if len(self._live) == 1 and not self._send_elsewhere(upstream, now_s):
            return False
        self._live.remove(upstream)
        self._refusing = upstream
        upstream.hold()
        return True

    def _send_elsewhere(self, upstream: Upstream, now_s: float) -> bool:
        pool = self.route.pool
        choice = self._choose(now_s)
        if choice.endpoint is None or choice.endpoint.health.state not in _IN_USE:
            upstream.attempt.confirmed = len(pool.endpoints) == 1
            return False
        endpoint, status = upstream.attempt.endpoint, upstream.answer.status
        if not pool.may_ask_again(endpoint, status, self._attempts, now_s):
            return False
        return self._send_again(choice, choice.endpoint, now_s)

    # -- what endpoints answer -------------------------------------------------------------

    def on_head(self, upstream: Upstream) -> bool:
        status = upstream.answer.status
        if status < 300:
            return True
        now_s = monotonic()
        if status not in self.route.pool.config.retry.statuses:
            return not (is_client_error(status) and self._ask_another(upstream, now_s))
        if len(self._live) > 1 or self._retry(now_s) or self._refusing is not None:
            self._abandon(upstream, outcome_of(status), now_s)
            self._fall_back()
            return False
        return True

    def _fall_back(self) -> None:
        """Believe who says that the request is wrong, if nobody is left to say otherwise."""
        upstream = self._refusing
        if upstream is not None and not self._live:
            self._refusing = None
            self._live.append(upstream)
            upstream.go_on()

    def on_first(self, upstream: Upstream, now_s: float) -> Client | None:
        client = self.client
        if client is None:
            self._abandon(upstream, AttemptOutcome.CANCELLED, now_s)
            return None
        self.winner = upstream
        for other in tuple(self._live):
            if other is not upstream:
                self._abandon(other, AttemptOutcome.CANCELLED, now_s)
        if self._refusing is not None:
            self._settle(self._refusing, upstream, now_s)
        if not upstream.awaits_byte:
            self.on_first_byte(upstream, now_s)
        taker = client.begin_answer(self, upstream)
        if taker is None:
            self._abandon(upstream, AttemptOutcome.CANCELLED, now_s)
        return taker

    def on_first_byte(self, upstream: Upstream, now_s: float) -> None:
        if (span := self._spans.get(upstream.attempt)) is not None:
            span.first_byte()
        if upstream.answer.status < 300:
            self.route.first_byte(upstream.attempt, self.started_s, now_s)

    def _settle(self, refusing: Upstream, other: Upstream, now_s: float) -> None:
        """Another endpoint has answered the request that ``refusing`` says is wrong."""
        self._refusing = None
        status = refusing.answer.status
        if other.answer.status < 300:
            self.route.pool.asking_paid(status)
            self._abandon(refusing, AttemptOutcome.LONE_ERROR, now_s)
            return
        alike = other.answer.status == status
        refusing.attempt.confirmed = other.attempt.confirmed = alike
        self._abandon(refusing, AttemptOutcome.CLIENT_ERROR, now_s)

    def on_done(self, upstream: Upstream, now_s: float) -> None:
        status = upstream.answer.status
        self._end(upstream, outcome_of(status), now_s)
        self._finish(status, now_s)

    def on_lost(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        if upstream is self._refusing:
            self._refusing = None
        self._end(upstream, outcome, now_s)
        client = self.client
        if client is None:
            return
        if self.winner is upstream:
            self._break_off(upstream, client, now_s)
        elif self._live or self._again(upstream, outcome, now_s):
            return
        elif self._refusing is not None:
            self._fall_back()
        else:
            self._fail(upstream, now_s)

    def _break_off(self, upstream: Upstream, client: ExchangeClient, now_s: float) -> None:
        """The answer ended in its middle: tell the client, in the stream if that is possible; else
        the connection ends, as the endpoint's did."""
        self.route.counters.stream_broken()
        told = upstream.takes_events
        if told:
            name = upstream.attempt.endpoint.name
            reason = upstream.error or "the connection ended"
            event = interrupted_event(f"the stream from {name} broke off: {reason}")
            client.write(self, upstream.told_last(event))
        self._finish(upstream.answer.status, now_s, close=not told)

    def _fail(self, upstream: Upstream, now_s: float) -> None:
        """No endpoint has answered, and none is left to ask."""
        name, outcome = upstream.attempt.endpoint.name, upstream.outcome
        status = 504 if outcome is AttemptOutcome.TIMEOUT else 502
        reason = upstream.error or "the connection ended before an answer"
        message = f"no endpoint answered ({self._attempts} tried); the last, {name}: {reason}"
        self.refuse(Refusal(status, message, code=f"upstream_{outcome}"), now_s)

    def _unroutable(self, choice: RoutingChoice) -> Refusal:
        self.route.counters.unroutable()
        self._context.recorder.none_found(choice, self.facts)
        return Refusal(
            503, f"no endpoint of {self.facts.model} can take it: {choice.reason}",
            code="no_endpoint", retry_after_s=1,
        )  # fmt: skip

    # -- endings ---------------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Called now and then: end what takes too long."""
        limits, winner = self._context.config.limits, self.winner
        if winner is not None:
            self._check_answer(winner, now_s)
            return
        for upstream in tuple(self._live):
            if now_s - upstream.attempt.started_s > limits.first_byte_timeout_s:
                upstream.error = f"nothing came for {limits.first_byte_timeout_s:g} s"
                upstream.lose(AttemptOutcome.TIMEOUT)
            elif self._wants_comment(now_s - self.started_s) and upstream.begin_silent(now_s):
                upstream.comment(now_s)
                return

    def _check_answer(self, winner: Upstream, now_s: float) -> None:
        limits = self._context.config.limits
        silent_s = 0.0 if self._client_is_slow() else now_s - winner.last_byte_s
        if now_s - self.started_s > limits.stream_timeout_s:
            winner.error = f"the answer took more than {limits.stream_timeout_s:g} s"
            winner.lose(AttemptOutcome.STREAM)
        elif silent_s > limits.silence_timeout_s:
            winner.error = f"nothing came for {limits.silence_timeout_s:g} s"
            winner.lose(AttemptOutcome.SILENT)
        elif self._wants_comment(min(silent_s, now_s - winner.commented_s)):
            winner.comment(now_s)

    def _wants_comment(self, silent_s: float) -> bool:
        keepalive_s = self.route.pool.config.keepalive_s
        return 0 < keepalive_s < silent_s

    def _client_is_slow(self) -> bool:
        return self.client is not None and self.client.paused

    def cancel(self, now_s: float) -> None:
        """The client is gone: so are the attempts."""
        self.client = None
        self._abandon_all(now_s)
        self._owner.ended(self, 499, now_s)

    def cut_short(self, why: str, now_s: float) -> None:
        """The router can't wait for the answer: tell the client ``why``, as if the endpoint had
        broken off."""
        client, winner = self.client, self.winner
        if winner is not None:
            winner.error = why
        self._abandon_all(now_s)
        if winner is None:
            self.refuse(Refusal(503, why, code="stopping", retry_after_s=1), now_s)
        elif client is not None:
            self._break_off(winner, client, now_s)

    def refuse(self, refusal: Refusal, now_s: float) -> None:
        """Answer with an error of ours."""
        client = self.client
        if client is not None:
            endpoint = self.tried[-1].name if self.tried else ""
            head = self._context.own_fields(self.call, endpoint)
            client.refuse(self, refusal, head)
            self._finish(refusal.status, now_s)

    def pause(self) -> None:
        """The client doesn't take more for now."""
        if self.winner is not None and self.winner.sink is self:
            self.winner.transport.pause_reading()

    def resume(self) -> None:
        """The client takes more again."""
        if self.winner is not None and self.winner.sink is self:
            self.winner.transport.resume_reading()

    def _abandon_all(self, now_s: float) -> None:
        for upstream in tuple(self._live):
            self._abandon(upstream, AttemptOutcome.CANCELLED, now_s)
        if self._refusing is not None:
            self._abandon(self._refusing, AttemptOutcome.CLIENT_ERROR, now_s)
            self._refusing = None

    def _abandon(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        upstream.drop()
        self._end(upstream, outcome, now_s)

    def _end(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        if upstream in self._live:
            self._live.remove(upstream)
        upstream.outcome = outcome
        if (span := self._spans.pop(upstream.attempt, None)) is not None:
            failed = outcome in FAULTS
            span.end(outcome.value, upstream.answer.status, failed=failed)
        self.route.ended(upstream, outcome, now_s)
        self._context.recorder.ended(upstream, outcome, now_s)

    def _finish(self, status: int, now_s: float, *, close: bool = False) -> None:
        client, self.client = self.client, None
        self._owner.ended(self, status, now_s)
        if client is not None:
            client.end_answer(self, close=close)


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
