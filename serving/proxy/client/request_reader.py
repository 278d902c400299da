"""Reads the requests of one connection, and refuses what is no request or too long."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Final, cast

import httptools

from trainmesh.serving.proxy.client.phase import ClientPhase, PhaseTimer
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.head_checks import check_head
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
from trainmesh.serving.proxy.router import Router
from trainmesh.serving.refusal import Refusal, RequestRefused

__all__ = ["RequestReader"]

MAX_PIPELINED: Final = 256
"""Whole requests that may wait: each holds its body."""
_ONCE: Final = {
    API_KEY: "api-key",
    CONTENT_ENCODING: "Content-Encoding",
    HOST: "Host",
    AUTHORIZATION: "Authorization",
    TRANSFER_ENCODING: "Transfer-Encoding",
    EXPECT: "Expect",
}


def _closes(call: Call) -> bool:
    """``close`` outweighs ``keep-alive`` (RFC 9112, 9.3); the parser has it so for 1.1 only."""
    return b"close" in nominated(call.special.get(CONNECTION, b""))


class RequestReader:
    """What a connection's parser calls.

    Args:
        router: says who asks, and what is too long.
        phase: of the connection; entered here as far as requests come.
        ready: where whole requests go, in order, and a refusal behind which nothing can be read.
    """

    __slots__ = ("_advanced", "_framing_ahead", "_good_host", "_header_bytes",
                 "_parser", "_phase", "_ready", "_received", "_refusal", "_router", "_seen_bytes",
                 "_unfinished_bytes", "call", "names", "transport")  # fmt: skip

    def __init__(
        self,
        router: Router,
        phase: PhaseTimer,
        ready: deque[Call | Refusal],
    ) -> None:
        self._router = router
        self._phase = phase
        self._ready = ready
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        """Of the connection, once it is made."""
        self.names: tuple[str, ...] = ()
        """Those in the client's certificate."""
        self.call: Call | None = None
        """What has come in part."""
        self._header_bytes = 0
        self._seen_bytes = 0
        self._unfinished_bytes = 0
        self._advanced = False
        """A piece of a body has come with the last data."""
        self._good_host: bytes | None = None
        self._refusal: Refusal | None = None
        self._framing_ahead = b""
        """A head with the framing of a request whose body the parser would leave out, as the
        request offers to upgrade; empty otherwise."""
        self._received = 0
        """Requests whose head has begun; each has its place in this order."""
        self._parser = httptools.HttpRequestParser(self)

    @property
    def phase(self) -> ClientPhase:
        """Of a connection that answers no request."""
        return ClientPhase.IDLE if self.call is None else ClientPhase.HEADER

    @property
    def body_bytes(self) -> int:
        """What has come of the body that is awaited."""
        return self.call.size if self.call is not None else 0

    def feed(self, data: bytes) -> bool:
        """Take what has come. False: nothing can be read behind it, and a refusal is ready."""
        nbytes = len(data)
        while data:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._ignore_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                refusal = self._refusal or Refusal(400, f"not HTTP/1.1: {error}", code="bad_http")
                self._ready.append(refusal)
                return False
        return self.call is None or self._check_header(nbytes)

    def _ignore_upgrade(self) -> bytes:
        """The parser stopped behind a head that offers another protocol. We speak none, so the
        request goes on as if nothing had been offered (RFC 9110, 7.8). What the next parser has to
        be fed first."""
        framing, self._framing_ahead = self._framing_ahead, b""
        self._parser = httptools.HttpRequestParser(Continued(self) if framing else self)
        return framing

    def _check_header(self, nbytes: int) -> bool:
        """A request has come in part: its fields are bounded, those of its trailer too, and one
        that never ends is."""
        limit = self._router.config.limits.header_bytes
        complete, self._seen_bytes = self._header_bytes != self._seen_bytes, self._header_bytes
        if complete or self._advanced:
            self._advanced = False
            self._unfinished_bytes = 0
        else:
            self._unfinished_bytes += nbytes
        if self._header_bytes + self._unfinished_bytes <= limit:
            return True
        self._ready.append(Refusal(431, f"the header has more than {limit} bytes"))
        return False

    # -- what the parser says --------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.call = call = Call()
        self._received += 1
        call.place = self._received
        self._header_bytes = 0
        if self._phase.phase is ClientPhase.IDLE:
            self._phase.enter(ClientPhase.HEADER, monotonic())

    def on_url(self, url: bytes) -> None:
        self._current().target += url
        self._header_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        call = cast(Call, self.call)
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
        call = cast(Call, self.call)
        parser = self._parser
        limits = self._router.config.limits
        if self._header_bytes > limits.header_bytes:
            raise self._refuse(431, f"the header has more than {limits.header_bytes} bytes")
        version = parser.get_http_version()
        call.method = parser.get_method()
        call.http10 = version == "1.0"
        call.keep_alive = parser.should_keep_alive() and not (call.http10 and _closes(call))
        try:
            self._good_host = check_head(call, version, limits, self._good_host)
            call.tenant = self._router.identify(call, self.names)
        except RequestRefused as error:
            self._refusal = error.refusal
            raise
        call.received_s = now_s = monotonic()
        special = call.special
        if CONTENT_LENGTH in special or TRANSFER_ENCODING in special:
            if parser.should_upgrade():
                self._framing_ahead = framing_head(call)
            if self._phase.phase is ClientPhase.HEADER:
                self._phase.enter(ClientPhase.BODY, now_s)
            expects = EXPECT in special and not call.http10  # RFC 9110, 10.1.1
            if expects and self._phase.phase is not ClientPhase.BUSY and not self._ready:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._advanced = True
        call = cast(Call, self.call)
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
        call, self.call = self._current(), None
        call.body = call.parts[0] if len(call.parts) == 1 else b"".join(call.parts)
        call.parts = []
        if len(self._ready) >= MAX_PIPELINED:
            self._router.bodies.release(call)
            raise self._refuse(429, f"more than {MAX_PIPELINED} requests at once", retry_after_s=1)
        self._ready.append(call)

    def _current(self) -> Call:
        return cast(Call, self.call)  # the parser says begin before all else

    def _refuse(
        self, status: int, message: str, *, retry_after_s: float | None = None
    ) -> RequestRefused:
        """The refusal that ends this connection; raised through the parser."""
        self._refusal = Refusal(status, message, retry_after_s=retry_after_s)
        return RequestRefused(self._refusal)
