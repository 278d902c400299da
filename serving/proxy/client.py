"""Connections from clients: they read requests, one after another, and write their answers."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import httptools

from trainmesh.serving.identity.gate import Tenant
from trainmesh.serving.identity.tls import peer_names
from trainmesh.serving.proxy.answer import Client
from trainmesh.serving.proxy.answers import Refusal
from trainmesh.serving.proxy.api import authority_of, is_host
from trainmesh.serving.proxy.headers import (
    AUTHORIZATION,
    CONNECTION,
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
from trainmesh.serving.proxy.upstream import Upstream

if TYPE_CHECKING:
    from trainmesh.serving.proxy.exchange import Exchange
    from trainmesh.serving.proxy.router import Router

__all__ = ["Call", "ClientConnection"]

MAX_PIPELINED: Final = 256
PAUSE_AT: Final = 16
LINGER_S: Final = 2.0
"""How long we read what a refused client still sends, so that our answer isn't lost to a reset."""
_ONCE: Final = {
    HOST: "Host",
    AUTHORIZATION: "Authorization",
    TRANSFER_ENCODING: "Transfer-Encoding",
    EXPECT: "Expect",
}
LEAST_BODY_BYTES_PER_S: Final = 50_000


class Phase(Enum):
    IDLE = "idle"
    HEADER = "header"
    BODY = "body"
    BUSY = "busy"
    LINGER = "linger"


class Call:
    """A request as it came, without the fields that were for us only."""

    __slots__ = ("body", "fields", "http10", "keep_alive", "method", "model", "parts",
                 "passed_key", "path", "query", "received_s", "size", "special", "target",
                 "tenant")  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.target = self.path = self.query = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.special: dict[int, bytes] = {}
        """Values of the fields that mean something to us (``headers``)."""
        self.keep_alive = True
        self.http10 = False
        self.parts: list[bytes] = []
        self.size = 0
        self.body = b""
        self.received_s = 0.0
        self.tenant: Tenant | None = None
        self.model = ""
        """As the client named it."""
        self.passed_key = b""
        """The Authorization field for an endpoint, where the router itself wants none."""

    def passed_fields(self) -> list[tuple[bytes, bytes]]:
        """The fields that go on to an endpoint."""
        connection = self.special.get(CONNECTION)
        if not connection:
            return self.fields
        gone = nominated(connection)
        return [pair for pair in self.fields if pair[0].lower() not in gone]


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        self._phase = Phase.IDLE
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
        self._exchange: Exchange | None = None
        self._serving: Call | None = None
        self._names: tuple[str, ...] = ()
        self._reading = True
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
                self._router.release(call)

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
        while data:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                # The request is complete and is answered as if it hadn't offered one.
                data = data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                self._broken = True
                refusal = self._refusal or Refusal(400, f"not HTTP/1.1: {error}", code="bad_http")
                self._ready.append(refusal)
                break
        if self._call is not None:
            self._check_header(len(data))
        if self._phase is not Phase.BUSY and self._ready:
            self._next()
        if len(self._ready) >= PAUSE_AT or (self.paused and self._ready):
            self._reading = False
            self.transport.pause_reading()

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
        self._call = Call()
        self._header_bytes = 0
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEADER, monotonic())

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
        call.keep_alive = parser.should_keep_alive()
        self._check_framing(call, version)
        try:
            call.tenant = self._router.identify(call, self._names)
        except Refusal as refusal:
            self._refusal = refusal
            raise
        call.received_s = now_s = monotonic()
        special = call.special
        if CONTENT_LENGTH in special or TRANSFER_ENCODING in special:
            if self._phase is Phase.HEADER:
                self._enter(Phase.BODY, now_s)
            if EXPECT in special and self._exchange is None and not self._ready:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_framing(self, call: Call, version: str) -> None:
        special = call.special
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
        call.size += len(data)
        self._router.buffered_bytes += len(data)
        call.parts.append(data)
        limits = self._router.config.limits
        if call.size > limits.body_bytes:
            raise self._refuse(413, f"the body has more than {limits.body_bytes} bytes")
        if self._router.buffered_bytes > limits.buffered_bytes:
            raise self._refuse(503, "the router holds too many bodies", retry_after_s=1)

    def on_message_complete(self) -> None:
        call, self._call = self._current(), None
        call.body = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
        call.parts = []
        if len(self._ready) >= MAX_PIPELINED:
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
        if self._exchange is not None or self.paused or self._phase is Phase.LINGER:
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
        self._serving = item
        self._enter(Phase.BUSY, item.received_s)
        try:
            answer = self._router.open(self, item)
        except Refusal as refusal:
            head_only = item.method == b"HEAD"
            answer = refusal.answer(close=not self._goes_on(), bodiless=head_only)
            self._router.refused(item, refusal)
        if answer is not None:
            self.transport.write(answer)
            self._served()

    def serve(self, exchange: Exchange) -> None:
        """``exchange`` answers the current request."""
        self._exchange = exchange

    def _hang_up(self, refusal: Refusal) -> None:
        self._router.refused(self._call, refusal)
        self.transport.write(refusal.answer(close=True))
        self._broken = True
        self._enter(Phase.LINGER, monotonic())
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def begin_answer(self, upstream: Upstream, request_id: str) -> Client:
        """Prepare the head of an answer, which goes to what this returns, before the body."""
        answer = upstream.answer
        call = cast(Call, self._serving)  # an exchange has a request
        self._router.release(call)
        head = [
            b"HTTP/1.1 %d %s\r\n" % (answer.status, answer.reason),
            self.answer_fields(request_id, upstream.attempt.endpoint.name),
            *self._framing(upstream, call),
            b"\r\n",
        ]
        upstream.lead = b"".join(head)
        if self.paused:
            upstream.transport.pause_reading()
        return self.transport

    def _framing(self, upstream: Upstream, call: Call) -> list[bytes]:
        answer = upstream.answer
        lines = [answer.head()]
        if upstream.collects:
            lines = [b"content-type: application/json\r\n"]
            lines.append(b"content-length: %d\r\n" % upstream.collected_bytes)
        elif upstream.request.inbound is not None:
            lines = [b"content-type: text/event-stream\r\n"]
            upstream.rechunk = not call.http10
        elif answer.content_length is not None:
            lines.append(b"content-length: %d\r\n" % answer.content_length)
        elif answer.chunked and not upstream.request.decode:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif answer.status not in (204, 304):
            upstream.rechunk = not call.http10
        if upstream.rechunk:
            lines.append(b"transfer-encoding: chunked\r\n")
        unbounded = call.http10 and answer.content_length is None and not upstream.collects
        if unbounded:
            call.keep_alive = False
        if not self._goes_on():
            lines.append(b"connection: close\r\n")
        elif call.http10:
            lines.append(b"connection: keep-alive\r\n")
        return lines

    def answer_fields(self, request_id: str, endpoint: str) -> bytes:
        """Our own header fields of every answer."""
        return b"x-trainmesh-request-id: %s\r\n" % request_id.encode() + (
            b"x-trainmesh-endpoint: %s\r\n" % endpoint.encode() if endpoint else b""
        )

    def end_answer(self, *, close: bool) -> None:
        """The answer is complete, or can't be completed (``close``)."""
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
            self._router.release(call)
        if not goes_on:
            self._broken = True
            self.transport.close()
            return
        self._enter(Phase.HEADER if self._call is not None else Phase.IDLE, monotonic())
        if self._ready or not self._reading:
            # Not from here: an endpoint's answer is still being taken apart further up, and
            # others are to be served between two pipelined requests.
            self._router.loop.call_soon(self._next)

    def _goes_on(self) -> bool:
        return self._serving is not None and self._keeps(self._serving)

    def _keeps(self, call: Call) -> bool:
        return call.keep_alive and not self._router.draining

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    # -- time ------------------------------------------------------------------------------

    def _enter(self, phase: Phase, now_s: float) -> None:
        self._phase = phase
        self._since_s = now_s

    def check(self, now_s: float) -> None:
        """Called now and then: end what takes too long."""
        limits = self._router.config.limits
        waited_s = now_s - self._since_s
        match self._phase:
            case Phase.IDLE if waited_s > limits.idle_timeout_s or self._router.draining:
                self.transport.close()
            case Phase.HEADER if waited_s > limits.header_timeout_s:
                self._hang_up(Refusal(408, "the header took too long"))
            case Phase.BODY if waited_s > limits.body_timeout_s + self._body_grace_s():
                self._hang_up(Refusal(408, "the body took too long"))
            case Phase.LINGER if waited_s > LINGER_S:
                self.transport.abort()
            case Phase.BUSY if self._exchange is not None:
                self._exchange.check(now_s)
            case _:
                pass

    def _body_grace_s(self) -> float:
        """A large body may take longer, as long as it comes."""
        return self._call.size / LEAST_BODY_BYTES_PER_S if self._call is not None else 0.0
