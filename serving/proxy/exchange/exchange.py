"""One request: where it is sent, again or twice if need be, and how its answer reaches the client.

An exchange begins when the request is complete and ends when the last byte of its answer is with
the client's connection, or the client is gone. Until the first byte of an answer it may be retried
and hedged; from then on one endpoint has won, and what it sends is forwarded.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Protocol

from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.retries.client_errors import is_client_error
from trainmesh.serving.decide.types import (
    AttemptOutcome,
    RequestFacts,
)
from trainmesh.serving.proxy.context import WorkerContext
from trainmesh.serving.proxy.exchange.attempts import RequestAttempts, outcome_of
from trainmesh.serving.proxy.exchange.second_opinion import ask_another, fall_back, settle
from trainmesh.serving.proxy.exchange.timeouts import check_answer, check_waiting
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.replies.answers import interrupted_event, refusal_answer
from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.proxy.upstream.answer import Client
from trainmesh.serving.proxy.upstream.connection import Upstream
from trainmesh.serving.refusal import Refusal

__all__ = ["Exchange", "ExchangeClient", "ExchangeOwner"]


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

    def goes_on(self) -> bool:
        """Whether its connection stays after the current answer."""
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

    __slots__ = ("_context", "_owner", "attempts", "call", "client", "estimates", "facts",
                 "hedge_at_s", "route", "started_s", "winner")  # fmt: skip

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
        self.client: ExchangeClient | None = client
        self.call = call
        self.facts = facts
        self.estimates = (facts.prompt_tokens, 0, 0)
        """Tokens of the prompt as text, as media and as counted ones, before any correction."""
        self.started_s = call.received_s
        self.hedge_at_s = 0.0
        self.attempts = RequestAttempts(context, route, call, facts, allowed)
        self.winner: Upstream | None = None

    @property
    def awaits_answer(self) -> bool:
        """Its client waits, and no endpoint has answered."""
        return self.winner is None and self.client is not None

    @property
    def waits(self) -> bool:
        """It has not been sent to any endpoint yet."""
        return not self.attempts.made

    # -- attempts --------------------------------------------------------------------------

    def start(self, now_s: float) -> None:
        """Send it for the first time.

        Raises:
            RequestRefused: no endpoint can take it.
            NoRoom: one could, but all that could are full.
        """
        self.attempts.first(self, now_s)
        pool = self.route.pool
        self.hedge_at_s = now_s + pool.hedge_delay_s(self.facts)
        if self.hedge_at_s < math.inf:
            self.route.hedges.expect(self)
        ejected = self.attempts.trial(now_s)
        if ejected is not None:
            self._owner.try_out(ejected, self, now_s)

    def hedge(self, now_s: float) -> None:
        """It takes longer than others did: send it a second time, elsewhere, if that is allowed."""
        if self.awaits_answer:
            self.attempts.hedge(self, now_s)

    # -- what endpoints answer -------------------------------------------------------------

    def on_head(self, upstream: Upstream) -> bool:
        status = upstream.answer.status
        if status < 300:
            return True
        now_s = monotonic()
        if status not in self.route.pool.config.retry.statuses:
            return not (
                is_client_error(status) and ask_another(self.attempts, self, upstream, now_s)
            )
        attempts = self.attempts
        if len(attempts.live) > 1 or attempts.retry(self, now_s) or attempts.refusing is not None:
            self.attempts.abandon(upstream, outcome_of(status), now_s)
            fall_back(self.attempts)
            return False
        return True

    def on_first(self, upstream: Upstream, now_s: float) -> Client | None:
        client = self.client
        if client is None:
            self.attempts.abandon(upstream, AttemptOutcome.CANCELLED, now_s)
            return None
        self.winner = upstream
        attempts = self.attempts
        if len(attempts.live) > 1:
            for other in [each for each in attempts.live if each is not upstream]:
                attempts.abandon(other, AttemptOutcome.CANCELLED, now_s)
        if attempts.refusing is not None:
            settle(attempts, attempts.refusing, upstream, now_s)
        if not upstream.awaits_byte:
            self.on_first_byte(upstream, now_s)
        taker = client.begin_answer(self, upstream)
        if taker is None:
            self.attempts.abandon(upstream, AttemptOutcome.CANCELLED, now_s)
        return taker

    def on_first_byte(self, upstream: Upstream, now_s: float) -> None:
        self.attempts.first_byte(upstream)
        if upstream.answer.status < 300:
            self.route.first_byte(upstream.attempt, self.started_s, now_s)

    def on_done(self, upstream: Upstream, now_s: float) -> None:
        status = upstream.answer.status
        self.attempts.end(upstream, outcome_of(status), now_s)
        self._finish(status, now_s)

    def on_lost(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        if upstream is self.attempts.refusing:
            self.attempts.refusing = None
        self.attempts.end(upstream, outcome, now_s)
        client = self.client
        if client is None:
            return
        if self.winner is upstream:
            self._break_off(upstream, client, now_s)
        elif self.attempts.live or self.attempts.again(self, upstream, outcome, now_s):
            return
        elif self.attempts.refusing is not None:
            fall_back(self.attempts)
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
        message = f"no endpoint answered ({self.attempts.made} tried); the last, {name}: {reason}"
        self.refuse(Refusal(status, message, code=f"upstream_{outcome}"), now_s)

    # -- endings ---------------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Called now and then: end what takes too long."""
        limits, keepalive_s = self._context.config.limits, self.route.pool.config.keepalive_s
        if self.winner is None:
            check_waiting(self.attempts.live, limits, keepalive_s, self.started_s, now_s)
        else:
            slow = self.client is not None and self.client.paused
            check_answer(self.winner, limits, keepalive_s, self.started_s, now_s, slow=slow)

    def cancel(self, now_s: float) -> None:
        """The client is gone: so are the attempts."""
        self.client = None
        self.attempts.abandon_all(now_s)
        self._owner.ended(self, 499, now_s)

    def cut_short(self, why: str, now_s: float) -> None:
        """The router can't wait for the answer: tell the client ``why``, as if the endpoint had
        broken off."""
        client, winner = self.client, self.winner
        if winner is not None:
            winner.error = why
        self.attempts.abandon_all(now_s)
        if winner is None:
            self.refuse(Refusal(503, why, code="stopping", retry_after_s=1), now_s)
        elif client is not None:
            self._break_off(winner, client, now_s)

    def refuse(self, refusal: Refusal, now_s: float) -> None:
        """Answer with an error of ours."""
        client = self.client
        if client is not None:
            endpoint = self.attempts.tried[-1].name if self.attempts.tried else ""
            head = self._context.own_fields(self.call, endpoint)
            client.write(self, refusal_answer(refusal, head=head, close=not client.goes_on()))
            self._finish(refusal.status, now_s)

    def pause(self) -> None:
        """The client doesn't take more for now."""
        if self.winner is not None and self.winner.sink is self:
            self.winner.transport.pause_reading()

    def resume(self) -> None:
        """The client takes more again."""
        if self.winner is not None and self.winner.sink is self:
            self.winner.transport.resume_reading()

    def _finish(self, status: int, now_s: float, *, close: bool = False) -> None:
        client, self.client = self.client, None
        self._owner.ended(self, status, now_s)
        if client is not None:
            client.end_answer(self, close=close)
