"""Connections from clients: they read requests, one after another, and write their answers."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Mapping
from enum import Enum
from time import monotonic
from typing import Final, cast

import httptools

from trainmesh.serving.config.types import HalfClosed
from trainmesh.serving.identity.tls import peer_names
from trainmesh.serving.observe.log import LOGGER, log_event
from trainmesh.serving.proxy.call import Call
from trainmesh.serving.proxy.exchange import Exchange
from trainmesh.serving.proxy.framing import answer_framing
from trainmesh.serving.proxy.reading.api import authority_of, is_host
from trainmesh.serving.proxy.reading.headers import (
    API_KEY,
    AUTHORIZATION,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DROP,
    EXPECT,
    HOST,
    PASS,
    TRANSFER_ENCODING,
    field,
    nominated,
)
from trainmesh.serving.proxy.reading.upgrade import Continued, framing_head
from trainmesh.serving.proxy.replies.answers import Refusal
from trainmesh.serving.proxy.router import Router
from trainmesh.serving.proxy.upstream.answer import Client
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["ClientConnection"]

MAX_PIPELINED: Final = 256
PAUSE_AT: Final = 16
LINGER_S: Final = 2.0
"""How long we read what a refused client still sends, so that our answer isn't lost to a reset."""
HALF_CLOSED_S: Final = 5.0
"""Between two looks whether a client that sends nothing more still reads: some count interim
answers. The first two follow one another at once: what tells is the second write, after a reset."""
RESET_S: Final = 0.25
"""By then a reset has come back for what was written to a closed connection."""
_ONCE: Final = {
    API_KEY: "api-key",
    CONTENT_ENCODING: "Content-Encoding",
    HOST: "Host",
    AUTHORIZATION: "Authorization",
    TRANSFER_ENCODING: "Transfer-Encoding",
    EXPECT: "Expect",
}
LEAST_BODY_BYTES_PER_S: Final = 50_000


class ClientPhase(Enum):
    IDLE = "idle"
    HEADER = "header"
    BODY = "body"
    BUSY = "busy"
    LINGER = "linger"


def _closes(call: Call) -> bool:
    """``close`` outweighs ``keep-alive`` (RFC 9112, 9.3); the parser has it so for 1.1 only."""
    return b"close" in nominated(call.special.get(CONNECTION, b""))


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        self._phase = ClientPhase.IDLE
        self._since_s = monotonic()
        self._call: Call | None = None
        self._header_bytes = 0
        self._seen_bytes = 0
        self._unfinished_bytes = 0
        self._advanced = False
        """A piece of a body has come with the last data."""
        self._good_host: bytes | None = None
        self._ready: deque[Call | Refusal] = deque()
        self._refusal: Refusal | None = None
        self._broken = False
        self._framing_ahead = b""
        """A head with the framing of a request whose body the parser would leave out, as the
        request offers to upgrade; empty otherwise."""
        self._received = 0
        """Requests whose head has begun; each has its place in this order."""
        self._answered = 0
        self._exchange: Exchange | None = None
        self._serving: Call | None = None
        self._names: tuple[str, ...] = ()
        self._reading = True
        self._half_closed = False
        """The client sends nothing more, and may still read."""
        self._looks: list[float] = []
        """When we looked whether it still reads: the first time and the last."""
        self.paused = False
        """It doesn't take our answers."""

    # -- what the network says -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        secured = cast(ssl.SSLObject | None, transport.get_extra_info("ssl_object"))
        if secured is not None:
            self._names = peer_names(secured)
        if not self._router.accepts(self):
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._router.connections.discard(self)
        self._broken = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel(monotonic())
        for call in (self._call, self._serving, *self._ready):
            if isinstance(call, Call):
                self._router.bodies.release(call)

    def eof_received(self) -> bool:
        """The client has shut down its sending side, or has closed the connection: only what we
        write will tell. Returns whether the connection stays open for its answers. One that speaks
        HTTP/1.0 knows no interim answers, so it is taken as gone: it is mostly a proxy whose
        own client has left."""
        exchange = self._exchange
        waiting = bool(self._ready) if exchange is None else not exchange.call.http10
        answers = self._router.config.limits.half_closed is HalfClosed.ANSWER
        if self._broken or self._call is not None or not (waiting and answers):
            return False
        self._half_closed = True
        self._see_whether_it_reads(monotonic())
        return True

    def _see_whether_it_reads(self, now_s: float) -> None:
        """An interim answer (RFC 9110, 15.2) costs a client nothing, nor does a comment in a stream
        of events, and a connection that is closed is reset by it, so that the endpoint needn't
        work for nobody."""
        exchange = self._exchange
        wait_s = RESET_S if len(self._looks) == 1 else HALF_CLOSED_S
        if exchange is None or self.paused or (self._looks and now_s - self._looks[-1] < wait_s):
            return
        self._looks = [*self._looks[:1], now_s]
        if exchange.winner is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            exchange.winner.comment(now_s)

    def pause_writing(self) -> None:
        self.paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._next()

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        nbytes = len(data)
        while data:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._ignore_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                self._broken = True
                refusal = self._refusal or Refusal(400, f"not HTTP/1.1: {error}", code="bad_http")
                self._ready.append(refusal)
                break
        if self._call is not None:
            self._check_header(nbytes)
        if self._phase is not ClientPhase.BUSY and self._ready:
            self._next()
        if len(self._ready) >= PAUSE_AT or (self.paused and self._ready):
            self._reading = False
            self.transport.pause_reading()

    def _ignore_upgrade(self) -> bytes:
        """The parser stopped behind a head that offers another protocol. We speak none, so the
        request goes on as if nothing had been offered (RFC 9110, 7.8). What the next parser has to
        be fed first."""
        framing, self._framing_ahead = self._framing_ahead, b""
        self._parser = httptools.HttpRequestParser(Continued(self) if framing else self)
        return framing

    def _check_header(self, nbytes: int) -> None:
        """A request has come in part: its fields are bounded, those of its trailer too, and one
        that never ends is."""
        limit = self._router.config.limits.header_bytes
        complete, self._seen_bytes = self._header_bytes != self._seen_bytes, self._header_bytes
        if complete or self._advanced:
            self._advanced = False
            self._unfinished_bytes = 0
        else:
            self._unfinished_bytes += nbytes
        if self._header_bytes + self._unfinished_bytes > limit and not self._broken:
            self._broken = True
            self._ready.append(Refusal(431, f"the header has more than {limit} bytes"))

    # -- what the parser says --------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._call = call = Call()
        self._received += 1
        call.place = self._received
        self._header_bytes = 0
        if self._phase is ClientPhase.IDLE:
            self._enter(ClientPhase.HEADER, monotonic())

    def on_url(self, url: bytes) -> None:
        self._current().target += url
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        call = cast(Call, self._call)
        self._header_bytes += len(name) + len(value) + 4
        if call.received_s:
            return  # a trailer
        kind = field(name)
        if kind == PASS or kind >= CONTENT_TYPE:
            call.fields.append((name, value))
        elif kind != DROP:
            special = call.special
            if kind not in special:
                special[kind] = value
            elif kind == CONNECTION:
                special[kind] += b"," + value
            elif kind in _ONCE:
                raise self._refuse(400, f"more than one {_ONCE[kind]} field")

    def on_headers_complete(self) -> None:
        call = cast(Call, self._call)
        parser = self._parser
        limit = self._router.config.limits.header_bytes
        if self._header_bytes > limit:
            raise self._refuse(431, f"the header has more than {limit} bytes")
        version = parser.get_http_version()
        call.method = parser.get_method()
        call.http10 = version == "1.0"
        call.keep_alive = parser.should_keep_alive() and not (call.http10 and _closes(call))
        self._check_framing(call, version)
        try:
            call.tenant = self._router.identify(call, self._names)
        except Refusal as refusal:
            self._refusal = refusal
            raise
        call.received_s = now_s = monotonic()
        special = call.special
        if CONTENT_LENGTH in special or TRANSFER_ENCODING in special:
            if parser.should_upgrade():
                self._framing_ahead = framing_head(call)
            if self._phase is ClientPhase.HEADER:
                self._enter(ClientPhase.BODY, now_s)
            expects = EXPECT in special and not call.http10  # RFC 9110, 10.1.1
            if expects and self._exchange is None and not self._ready:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_framing(self, call: Call, version: str) -> None:
        special = call.special
        if call.method == b"CONNECT":
            raise self._refuse(405, "CONNECT is for proxies of other hosts; this is none")
        if version != "1.1":
            self._check_old(special, version)
        host = special.get(HOST)
        if host is None or host != self._good_host:
            self._check_host(host, old=call.http10)
        if call.target[:1] != b"/" and authority_of(call.target) not in (
            b"",
            (host or b"").lower(),
        ):
            raise self._refuse(400, "the target names another host than the Host field")
        coding = special.get(TRANSFER_ENCODING)
        if coding is not None and coding.strip().lower() != b"chunked":
            raise self._refuse(501, "no Transfer-Encoding but chunked is understood")
        if EXPECT in special and special[EXPECT].lower() != b"100-continue":
            raise self._refuse(417, "Expect can only be 100-continue")
        limit = self._router.config.limits.body_bytes
        if int(special.get(CONTENT_LENGTH, b"0")) > limit:
            raise self._refuse(413, f"the body has more than {limit} bytes")

    def _check_old(self, special: Mapping[int, bytes], version: str) -> None:
        if version != "1.0":
            raise self._refuse(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        if TRANSFER_ENCODING in special:
            raise self._refuse(400, "HTTP/1.0 has no Transfer-Encoding")

    def _check_host(self, host: bytes | None, *, old: bool) -> None:
        if host is None:
            if not old:
                raise self._refuse(400, "no Host field; there must be one")
            return
        if not is_host(host):
            raise self._refuse(400, "the Host field is no host")
        self._good_host = host

    def on_body(self, data: bytes) -> None:
        self._advanced = True
        call = cast(Call, self._call)
        bodies = self._router.bodies
        bodies.add(call, data)
        limits = self._router.config.limits
        if call.size > limits.body_bytes:
            raise self._refuse(413, f"the body has more than {limits.body_bytes} bytes")
        if bodies.nbytes > limits.buffered_bytes:
            raise self._refuse(503, "the router holds too many bodies", retry_after_s=1)

    def on_message_complete(self) -> None:
        if self._framing_ahead:
            return  # only the head is: the parser is about to stop for the upgrade
        call, self._call = self._current(), None
        call.body = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
        call.parts = []
        if len(self._ready) >= MAX_PIPELINED:
            self._router.bodies.release(call)
            raise self._refuse(429, f"more than {MAX_PIPELINED} requests at once", retry_after_s=1)
        self._ready.append(call)

    def _current(self) -> Call:
        return cast(Call, self._call)  # the parser says begin before all else

    def _refuse(self, status: int, message: str, *, retry_after_s: float | None = None) -> Refusal:
        """The refusal that ends this connection; raised through the parser."""
        self._refusal = Refusal(status, message, retry_after_s=retry_after_s)
        return self._refusal

    # -- one request after another ---------------------------------------------------------

    def _next(self) -> None:
        """Begin the next request, if the one before is done and the client takes its answers."""
        if self._exchange is not None or self.paused or self._phase is ClientPhase.LINGER:
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
        self._answered += 1
        if item.place != self._answered:
            self._lose_order(f"request {item.place} came up as number {self._answered}")
            return
        self._serving = item
        self._enter(ClientPhase.BUSY, item.received_s)
        try:
            answer = self._router.open(self, item)
        except Refusal as refusal:
            head_only = item.method == b"HEAD"
            head = self._router.own_fields(item)
            answer = refusal.answer(head=head, close=not self._goes_on(), bodiless=head_only)
            self._router.refused(item, refusal)
        if answer is not None:
            self.transport.write(answer)
            self._served()

    def _lose_order(self, what: str) -> None:
        """An answer would reach the wrong request, which must be impossible: better none."""
        log_event(LOGGER, "order_lost", level=logging.ERROR, reason=what)
        self._broken = True
        self.transport.abort()

    def serve(self, exchange: Exchange) -> None:
        """``exchange`` answers the current request."""
        self._exchange = exchange

    def _hang_up(self, refusal: Refusal) -> None:
        call = self._call or Call()  # nothing of it could be read
        self._router.refused(call, refusal)
        head = self._router.own_fields(call)
        self._broken = True
        if self.transport.is_closing():
            return  # its client has left; nobody reads it
        self.transport.write(refusal.answer(head=head, close=True))
        self._enter(ClientPhase.LINGER, monotonic())
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _is_served_by(self, exchange: Exchange) -> bool:
        """Whether ``exchange`` answers the request whose turn it is; ends the connection if not."""
        if exchange is self._exchange:
            return True
        self._lose_order("an answer came for a request whose turn it is not")
        return False

    def begin_answer(self, exchange: Exchange, upstream: Upstream) -> Client | None:
        """Prepare the head of an answer, which goes to what this returns, before the body; None
        if it isn't ``exchange``'s turn."""
        if not self._is_served_by(exchange):
            return None
        answer = upstream.answer
        call = cast(Call, self._serving)  # an exchange has a request
        self._router.bodies.release(call)
        head = [
            b"HTTP/1.1 %d %s\r\n" % (answer.status, answer.reason),
            self._router.own_fields(call, upstream.attempt.endpoint.name),
            *answer_framing(upstream, call),
            self._connection_field(call),
            b"\r\n",
        ]
        upstream.lead = b"".join(head)
        if self.paused:
            upstream.transport.pause_reading()
        return self.transport

    def _connection_field(self, call: Call) -> bytes:
        if not self._goes_on():
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if call.http10 else b""

    def end_answer(self, exchange: Exchange, *, close: bool) -> None:
        """The answer is complete, or can't be completed (``close``)."""
        if not self._is_served_by(exchange):
            return
        self._exchange = None
        if self.transport.is_closing():
            return
        if close:
            self.transport.close()
            return
        self._served()

    def _served(self) -> None:
        call, self._serving = self._serving, None
        goes_on = call is not None and self._keeps(call)
        if call is not None:
            self._router.bodies.release(call)
        if not goes_on:
            self._broken = True
            self.transport.close()
            return
        self._enter(ClientPhase.HEADER if self._call is not None else ClientPhase.IDLE, monotonic())
        if self._ready or not self._reading:
            # Not from here: an endpoint's answer is still being taken apart further up, and
            # others are to be served between two pipelined requests.
            self._router.loop.call_soon(self._next)

    def _goes_on(self) -> bool:
        return self._serving is not None and self._keeps(self._serving)

    def _keeps(self, call: Call) -> bool:
        ends = self._half_closed and not self._ready
        return call.keep_alive and not ends and not self._router.draining

    def refuse(self, exchange: Exchange, refusal: Refusal, head: bytes) -> None:
        """Answer the request of ``exchange`` with an error of ours; ``head``: header fields."""
        if self._is_served_by(exchange):
            self.transport.write(refusal.answer(head=head, close=not self._goes_on()))

    def write(self, exchange: Exchange, data: bytes) -> None:
        """Part of an answer that ``exchange`` makes itself."""
        if self._is_served_by(exchange):
            self.transport.write(data)

    # -- time ------------------------------------------------------------------------------

    def _enter(self, phase: ClientPhase, now_s: float) -> None:
        self._phase = phase
        self._since_s = now_s

    def check(self, now_s: float) -> None:
        """Called now and then: end what takes too long."""
        limits = self._router.config.limits
        waited_s = now_s - self._since_s
        match self._phase:
            case ClientPhase.IDLE if waited_s > limits.idle_timeout_s or self._router.draining:
                self.transport.close()
            case ClientPhase.HEADER if waited_s > limits.header_timeout_s:
                self._hang_up(Refusal(408, "the header took too long"))
            case ClientPhase.BODY if waited_s > limits.body_timeout_s + self._body_grace_s():
                self._hang_up(Refusal(408, "the body took too long"))
            case ClientPhase.LINGER if waited_s > LINGER_S:
                self.transport.abort()
            case ClientPhase.BUSY if self._exchange is not None:
                if self._half_closed:
                    self._see_whether_it_reads(now_s)
                self._exchange.check(now_s)
            case _:
                pass

    def _body_grace_s(self) -> float:
        """A large body may take longer, as long as it comes."""
        return self._call.size / LEAST_BODY_BYTES_PER_S if self._call is not None else 0.0
