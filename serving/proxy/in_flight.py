"""Requests on their way: which are let in, which wait, and what is left to do when one is over."""

from __future__ import annotations

from time import monotonic
from typing import cast

from trainmesh.serving.decide.admission.admission import Admission, Queued, Ticket
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.observe.shared_counters import SharedCounters
from trainmesh.serving.proxy.context import WorkerContext
from trainmesh.serving.proxy.exchange.attempts import NoRoom
from trainmesh.serving.proxy.exchange.exchange import Exchange, ExchangeClient
from trainmesh.serving.proxy.exchange.trial import TrialRequest
from trainmesh.serving.proxy.upstream.connection import Upstream
from trainmesh.serving.refusal import Refusal, RequestRefused

__all__ = ["InFlight"]


class InFlight:
    """One worker's.

    Args:
        context: of the worker.
        admission: of its first configuration; a reload sets another one, made from it.
    """

    __slots__ = ("_context", "_exchanges", "_trials", "admission")

    def __init__(self, context: WorkerContext, admission: Admission) -> None:
        self._context = context
        self.admission = admission
        self._exchanges: set[Exchange] = set()
        self._trials: set[TrialRequest] = set()

    def __len__(self) -> int:
        return len(self._exchanges)

    @property
    def streams(self) -> int:
        """Answers that are being streamed now."""
        return sum(exchange.winner is not None for exchange in self._exchanges)

    # -- begin -----------------------------------------------------------------------------

    def offer(self, exchange: Exchange, client: ExchangeClient) -> None:
        """Begin with ``exchange``, which answers ``client``, or let it wait.

        Raises:
            RequestRefused: it may not even wait.
        """
        now_s = monotonic()
        facts, route = exchange.facts, exchange.route
        ticket = Ticket(facts, exchange)
        verdict = self.admission.offer(ticket, now_s)
        route.counters.requested()
        if isinstance(verdict, Refusal):
            route.counters.refused()
            route.pool.demand.unmet()
            self._context.counters.refused(facts.tenant)
            raise RequestRefused(verdict)
        self._context.counters.taken(facts.tenant, facts.prompt_tokens)
        self._exchanges.add(exchange)
        client.serve(exchange)
        if isinstance(verdict, Queued):
            route.counters.queued()
            route.pool.demand.unmet()
        else:
            self._begin(exchange, ticket, now_s)

    def _start(self, ticket: Ticket, now_s: float) -> None:
        """Send a request that has waited."""
        exchange = cast(Exchange, ticket.owner)
        waited_s = now_s - ticket.queued_at_s
        if self._begin(exchange, ticket, now_s):
            exchange.route.counters.waited(waited_s)

    def _begin(self, exchange: Exchange, ticket: Ticket, now_s: float) -> bool:
        """Send a request that was let in; False if it has to wait after all."""
        try:
            exchange.start(now_s)
        except NoRoom:
            exchange.route.pool.demand.unmet()
            self.admission.put_back(ticket, now_s)
            return False
        except RequestRefused as error:
            exchange.refuse(error.refusal, now_s)
        return True

    def try_out(self, endpoint: Endpoint, exchange: Exchange, now_s: float) -> None:
        """Send a copy of ``exchange`` to an endpoint that gets none."""
        TrialRequest(exchange.route, endpoint, self._trials).start(exchange, now_s)

    # -- end -------------------------------------------------------------------------------

    def ended(self, exchange: Exchange, status: int, now_s: float) -> None:
        """A request is over; others may take its place."""
        self._exchanges.discard(exchange)
        self._context.bodies.release(exchange.call)
        winner = exchange.winner
        tokens = winner.output_tokens() if winner is not None else 0
        prompt_tokens = _counted(exchange, winner) if winner is not None else 0
        context = self._context
        context.counters.ended(exchange.facts.tenant, status, tokens)
        exchange.route.counters.finished(status, now_s - exchange.started_s)
        if exchange.attempts.trace is not None:
            exchange.attempts.trace.end(status)
        endpoint = winner.attempt.endpoint.name if winner is not None else ""
        context.log_access(exchange.call, status, now_s, exchange.route.name, endpoint)
        for ticket in self.admission.release(
            exchange, now_s, tokens or None, prompt_tokens or None
        ):
            self._start(ticket, now_s)

    def cut_short(self, why: str) -> None:
        """Answer every request now, with an error that says ``why``."""
        now_s = monotonic()
        # Those that wait first: they would be sent to the places that the others leave.
        for exchange in sorted(self._exchanges, key=lambda one: not one.waits):
            exchange.cut_short(why, now_s)

    # -- time ------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Called every 50 ms: end the wait of those that waited too long or need not any more."""
        for ticket, refusal in self.admission.expire(now_s):
            cast(Exchange, ticket.owner).refuse(refusal, now_s)
        for ticket in self.admission.ready(now_s):
            self._start(ticket, now_s)

    def tick_slowly(self, now_s: float) -> None:
        """Called about twice a second."""
        for trial in tuple(self._trials):
            trial.check(now_s)

    def hear_others(self, counters: SharedCounters, worker: int) -> None:
        """What tenants used at other workers of this router."""
        for name, cells in counters.layout.tenants.items():
            tokens = cells.prompt_tokens, cells.output_tokens
            self.admission.hear_others(
                name,
                counters.others(cells.requests, worker),
                sum(counters.others(cell, worker) for cell in tokens),
                counters.others(cells.inflight, worker),
            )


def _counted(exchange: Exchange, winner: Upstream) -> int:
    """The tokens of the prompt as the endpoint counts them, to learn from; 0: unknown."""
    tokens = winner.usage.prompt_tokens
    if tokens:
        text, media, exact = exchange.estimates
        exchange.route.token_ratio.counted(text, media, exact, tokens)
    return tokens
