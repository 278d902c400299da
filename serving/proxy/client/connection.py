"""A connection of a client: it answers requests in the order in which they came."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from time import monotonic
from typing import Final, cast

from trainmesh.serving.config.types import HalfClosed
from trainmesh.serving.identity.tls import peer_names
from trainmesh.serving.proxy.client.framing import answer_head
from trainmesh.serving.proxy.client.half_closed import HalfClosedClient
from trainmesh.serving.proxy.client.phase import ClientPhase, PhaseTimer
from trainmesh.serving.proxy.client.request_reader import RequestReader
from trainmesh.serving.proxy.client.turn import AnswerTurn
from trainmesh.serving.proxy.exchange.exchange import Exchange
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.replies.answers import refusal_answer
from trainmesh.serving.proxy.router import Router
from trainmesh.serving.proxy.upstream.answer import Client
from trainmesh.serving.proxy.upstream.connection import Upstream
from trainmesh.serving.refusal import Refusal, RequestRefused

__all__ = ["ClientConnection"]

PAUSE_AT: Final = 16
"""Requests that wait before no more are read."""


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._phase = PhaseTimer(monotonic())
        self._ready: deque[Call | Refusal] = deque()
        self._reader = RequestReader(router, self._phase, self._ready)
        self._broken = False
        self._turn = AnswerTurn()
        self._reading = True
        self._half_closed: HalfClosedClient | None = None
        """The client sends nothing more, and may still read."""
        self.paused = False
        """It doesn't take our answers."""

    # -- what the network says -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._reader.transport = self.transport
        secured = cast(ssl.SSLObject | None, transport.get_extra_info("ssl_object"))
        if secured is not None:
            self._reader.names = peer_names(secured)
        if not self._router.accepts(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._router.connections.discard(self)
        self._broken = True
        exchange, self._turn.exchange = self._turn.exchange, None
        if exchange is not None:
            exchange.cancel(monotonic())
        for call in (self._reader.call, self._turn.call, *self._ready):
            if isinstance(call, Call):
                self._router.bodies.release(call)

    def eof_received(self) -> bool:
        """The client sends nothing more; whether the connection stays open for its answers."""
        exchange = self._turn.exchange
        waiting = bool(self._ready) if exchange is None else not exchange.call.http10
        answers = self._router.config.limits.half_closed is HalfClosed.ANSWER
        if self._broken or self._reader.call is not None or not (waiting and answers):
            return False
        self._half_closed = HalfClosedClient()
        self._half_closed.check(self._turn.exchange, self.transport, self.paused, monotonic())
        return True

    def pause_writing(self) -> None:
        self.paused = True
        if exchange := self._turn.exchange:
            exchange.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if exchange := self._turn.exchange:
            exchange.resume()
        self._next()

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        self._broken = not self._reader.feed(data)
        if self._phase.phase is not ClientPhase.BUSY and self._ready:
            self._next()
        if len(self._ready) >= PAUSE_AT or (self.paused and self._ready):
            self._reading = False
            self.transport.pause_reading()

    # -- one request after another ---------------------------------------------------------

    def _next(self) -> None:
        """Begin the next request, if the one before is done and the client takes its answers."""
        if (
            self._turn.exchange is not None
            or self.paused
            or self._phase.phase is ClientPhase.LINGER
        ):
            return
        if not self._ready:
            if not self._reading:
                self._reading = True
                self.transport.resume_reading()
            return
        item = self._ready.popleft()
        if isinstance(item, Refusal):
            self._hang_up(item)
            return
        if not self._turn.begin(item):
            self._broken = True
            self.transport.abort()
            return
        self._phase.enter(ClientPhase.BUSY, item.received_s)
        try:
            answer = self._router.open(self, item)
        except RequestRefused as error:
            head, head_only = self._router.own_fields(item), item.method == b"HEAD"
            close = not self.goes_on()
            answer = refusal_answer(error.refusal, head=head, close=close, bodiless=head_only)
            self._router.refused(item, error.refusal)
        if answer is not None:
            self.transport.write(answer)
            self._served()

    def serve(self, exchange: Exchange) -> None:
        """``exchange`` answers the current request."""
        self._turn.exchange = exchange

    def _hang_up(self, refusal: Refusal) -> None:
        call = self._reader.call or Call()  # nothing of it could be read
        self._router.refused(call, refusal)
        head = self._router.own_fields(call)
        self._broken = True
        if self.transport.is_closing():
            return  # its client has left; nobody reads it
        self.transport.write(refusal_answer(refusal, head=head, close=True))
        self._phase.enter(ClientPhase.LINGER, monotonic())
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _is_served_by(self, exchange: Exchange) -> bool:
        """Whether ``exchange`` answers the request whose turn it is; ends the connection if not."""
        if self._turn.is_of(exchange):
            return True
        self._broken = True
        self.transport.abort()
        return False

    def begin_answer(self, exchange: Exchange, upstream: Upstream) -> Client | None:
        """Prepare the head of an answer, which goes to what this returns, before the body; None
        if it isn't ``exchange``'s turn."""
        if not self._is_served_by(exchange):
            return None
        call = cast(Call, self._turn.call)  # an exchange has a request
        self._router.bodies.release(call)
        own_fields = self._router.own_fields(call, upstream.attempt.endpoint.name)
        upstream.lead = answer_head(upstream, call, own_fields, last=self._ends())
        if self.paused:
            upstream.transport.pause_reading()
        return self.transport

    def end_answer(self, exchange: Exchange, *, close: bool) -> None:
        """The answer is complete, or can't be completed (``close``)."""
        if not self._is_served_by(exchange):
            return
        self._turn.exchange = None
        if self.transport.is_closing():
            return
        if close:
            self.transport.close()
        else:
            self._served()

    def _served(self) -> None:
        goes_on = self.goes_on()
        call, self._turn.call = self._turn.call, None
        if call is not None:
            self._router.bodies.release(call)
        if not goes_on:
            self._broken = True
            self.transport.close()
            return
        self._phase.enter(self._reader.phase, monotonic())
        if self._ready or not self._reading:
            # Not from here: an endpoint's answer is still being taken apart further up, and
            # others are to be served between two pipelined requests.
            self._router.loop.call_soon(self._next)

    def goes_on(self) -> bool:
        """Whether the connection stays after the current answer."""
        call = self._turn.call
        return call is not None and call.keep_alive and not self._ends()

    def _ends(self) -> bool:
        """Whether it ends after the current answer, whatever its client wants."""
        return self._router.draining or (self._half_closed is not None and not self._ready)

    def write(self, exchange: Exchange, data: bytes) -> None:
        """Part of an answer that ``exchange`` makes itself."""
        if self._is_served_by(exchange):
            self.transport.write(data)

    # -- time ------------------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Called now and then: end what takes too long."""
        phase, exchange = self._phase.phase, self._turn.exchange
        if exchange is not None:
            if self._half_closed is not None:
                self._half_closed.check(exchange, self.transport, self.paused, now_s)
            exchange.check(now_s)
            return
        overdue = self._phase.overdue(self._router.config.limits, self._reader.body_bytes, now_s)
        if phase is ClientPhase.IDLE and (overdue or self._router.draining):
            self.transport.close()
        elif phase is ClientPhase.LINGER and overdue:
            self.transport.abort()
        elif overdue:
            self._hang_up(Refusal(408, f"the {phase.value} took too long"))
