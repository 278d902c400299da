"""A connection to an endpoint: it sends a request and hands on the bytes of its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol, cast

import httptools

from trainmesh.serving.adapters.types import AdapterError
from trainmesh.serving.decide.endpoint import Attempt
from trainmesh.serving.decide.types import (
    AttemptOutcome,
)
from trainmesh.serving.proxy.reading.first_event import GOOD, error_of, status_of
from trainmesh.serving.proxy.reading.usage import (
    NO_USAGE,
    USAGE_BYTES,
    USAGE_PIECES,
    PartialUsage,
    find_usage,
)
from trainmesh.serving.proxy.upstream.answer import (
    AnswerHead,
    Client,
    UpstreamRequest,
    end_of_chunks,
    excess_line_ends,
)

__all__ = ["Sink", "Upstream"]

MAX_HEAD_BYTES: Final = 65_536
MAX_HELD_BYTES: Final = 65_536
MAX_UNBEGUN_BYTES: Final = 1_048_576
"""Held before anything can be forwarded: an error's first 64 kB (``first_event``), byte by byte."""
MAX_FRAMING_BYTES: Final = 65_536
"""Between two bytes of a body, or behind the last: extensions of a chunk, zeros before its size,
trailers. The parser keeps some of them, and copies them with each piece that comes."""
"""A chunk that is longer is forwarded in parts; if its stream breaks, no error event can follow."""
LARGE_BYTES: Final = 65_536
COMMENT: Final = b": keep-alive\n\n"
EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\n\n\r\n", b"\r\n\r\n\r\n")
"""Of what was forwarded last, without and with the end of its chunk."""


class ConnectionPool(Protocol):
    """Who opens connections to an endpoint and keeps them (``server.Server``)."""

    closed: bool
    observe_gap: Callable[[float], None]

    def free(self, upstream: Upstream) -> None: ...
    def forget(self, upstream: Upstream) -> None: ...


class Sink(Protocol):
    """Who sent a request, and hears how its answer comes along."""

    def on_head(self, upstream: Upstream) -> bool:
        """Status and header fields are known. False: the answer is not wanted any more."""
        ...

    def on_first(self, upstream: Upstream, now_s: float) -> Client | None:
        """The body begins (or there is none). The client to send it to, after ``upstream.lead``;
        None: the answer is not wanted any more."""
        ...

    def on_first_byte(self, upstream: Upstream, now_s: float) -> None:
        """The body begins, of which the client had been told before (``begin_silent``)."""
        ...

    def on_done(self, upstream: Upstream, now_s: float) -> None:
        """The whole answer has been forwarded."""
        ...

    def on_lost(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        """No more will come."""
        ...


class Upstream(asyncio.Protocol):
    """One connection. It serves one request after another, and one at a time.

    The body is forwarded as it came, but a chunk that has come in part waits for its rest: so the
    client's stream is always between two chunks, where an error event can still be put.
    """

    __slots__ = ("_begun", "_complete", "_decoded", "_decoding", "_ends", "_excess", "_first",
                 "_framing", "_held", "_in_head", "_informational", "_keep", "_last", "_on_hold",
                 "_open_chunk", "_out", "_parser", "_raw", "_reused", "_tail", "_unjudged",
                 "_usage", "answer", "attempt", "awaits_byte", "chunks", "client", "commented_s",
                 "connecting", "error", "idle_since_s", "last_byte_s", "lead", "nbytes", "outcome",
                 "rechunk", "request", "server", "sink", "transport", "whole")  # fmt: skip

    __deletable__ = ("answer", "attempt", "client", "request")  # mypyc wants to be told

    def __init__(self, server: ConnectionPool) -> None:
        self.server = server
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.connecting: asyncio.Task[None] | None = None
        self.sink: Sink | None = None
        self.outcome = AttemptOutcome.OK
        """How the attempt ended; set by the sink."""
        self.idle_since_s = 0.0
        self.error = ""
        self._reused = False
        self._parser = httptools.HttpResponseParser(self)

    # -- sending ---------------------------------------------------------------------------

    def assign(self, sink: Sink, attempt: Attempt, request: UpstreamRequest) -> None:
        """The next answer is for ``sink``."""
        self.sink = sink
        self.attempt = attempt
        self.request = request
        self.client: Client | None = None
        self.answer = AnswerHead()
        self.error = ""
        self.chunks = 0
        self.nbytes = 0
        self.last_byte_s = self.commented_s = 0.0
        self.whole = True
        self._in_head = True
        self._begun = self._complete = self._excess = self._open_chunk = False
        self._keep = self._on_hold = False
        self._informational = self._framing = 0
        self._raw = b""
        self._held = self._tail = self._last = b""
        self._ends: deque[bytes] = deque(maxlen=USAGE_PIECES)
        """Of what was forwarded last, where answers say what they have counted."""
        self._usage: PartialUsage | None = None
        self._unjudged = False
        """The answer may be an error though its status is 200; ``_first`` is its body so far."""
        self._first = b""
        self._decoded: list[bytes] = []
        self._decoding = request.decode or request.inbound is not None
        self.lead = b""
        """The head of the answer, written with its first bytes; ``on_first`` sets it."""
        self.awaits_byte = False
        """The client has been told that a stream begins, but nothing of it has come yet."""
        self.rechunk = False
        """Forward a decoded body as chunks; the sink sets it in ``on_first``."""
        self._out = b""

    def send(self, sink: Sink, attempt: Attempt, request: UpstreamRequest) -> None:
        """Send over this connection, which served another request before."""
        self._reused = True
        self.assign(sink, attempt, request)
        self.write_request(request)

    def write_request(self, request: UpstreamRequest) -> None:
        if len(request.body) < LARGE_BYTES:
            self.transport.write(request.head + request.body)
        else:
            self.transport.write(request.head)
            self.transport.write(request.body)

    # -- what the parser says --------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._excess = True

    def on_status(self, status: bytes) -> None:
        if not self._excess:
            self.answer.reason += status  # it may come in pieces

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer, or an answer that nobody has asked for
        self.answer.note(name, value)

    def on_headers_complete(self) -> None:
        if self._excess:
            return
        status = self._parser.get_status_code()
        if status < 100:
            raise ValueError("there is no such status")
        if status < 200:
            self._informational += 1
            self.answer = AnswerHead()
            return
        self.answer.status = status
        self._in_head = False
        self._unjudged = status == 200 and self.request.inbound is None and self.answer.is_text

    def on_chunk_header(self) -> None:
        self._open_chunk = True

    def on_chunk_complete(self) -> None:
        self._open_chunk = False

    def on_body(self, data: bytes) -> None:
        if self._excess:
            return
        self._begun = True
        self._framing = 0
        if self._unjudged:
            self._first += data
        if self._decoding:
            self._decoded.append(data)

    def on_message_complete(self) -> None:
        if not self._in_head and not self._excess:
            self._complete = True
            self._keep = self._parser.should_keep_alive()  # only now does it know

    # -- what the network says -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.sink is None:
            self.close()  # nobody asked
            return
        was_in_head = self._in_head
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.error = "it switched to another protocol, which nobody had asked for"
            self.lose(AttemptOutcome.RESET if self.client is None else AttemptOutcome.STREAM)
            return
        except httptools.HttpParserError as error:
            if not self._complete:
                self.error = f"its answer is not HTTP: {error}"
                self.lose(AttemptOutcome.RESET if self.client is None else AttemptOutcome.STREAM)
                return
            self._excess = True
        if self._framing > MAX_FRAMING_BYTES and not was_in_head and not self._complete:
            self._lose_endless()
        elif was_in_head:
            self._take_head(data)
        elif self._on_hold:
            self._keep_for_later(data)
        else:
            self._take_body(data)

    def eof_received(self) -> bool:
        if self.sink is not None and not self._in_head and not self._complete:
            self._end_without_length()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.forget(self)
        if self.sink is not None and not (self._on_hold and self._complete):
            if exc is not None and not self.error:
                self.error = str(exc)
            self.lose(AttemptOutcome.RESET if self.client is None else AttemptOutcome.STREAM)

    # -- an answer, step by step -----------------------------------------------------------

    def _take_head(self, data: bytes) -> None:
        """The head may be complete; goes on with the rest of ``data`` if it is."""
        self._raw += data
        if self._in_head:
            if len(self._raw) > MAX_HEAD_BYTES:
                self.error = "its header is too long"
                self.lose(AttemptOutcome.RESET)
            return
        raw, start = self._raw, 0
        for _ in range(self._informational + 1):
            start = raw.index(b"\r\n\r\n", start) + 4
        self._raw = b""
        sink = self.sink
        if sink is None or not sink.on_head(self):
            if self._on_hold:
                self._keep_for_later(raw[start:])
            return
        if self.without_length and not self._complete and not self._decoding:
            self._decoding = True
            self._decoded.append(raw[start:])
        self._take_body(raw[start:])

    def hold(self) -> None:
        """Wait with the body of an answer whose head is there (to be called in ``on_head``, which
        then returns False), until ``go_on`` or ``drop``. Not for one ``without_length``."""
        self._on_hold = True

    def go_on(self) -> None:
        """Take the body of an answer that was on hold."""
        self._on_hold = False
        data, self._raw = self._raw, b""
        if not self.transport.is_closing():
            self.transport.resume_reading()
        self._take_body(data)

    def _keep_for_later(self, data: bytes) -> None:
        self._raw += data
        if len(self._raw) > MAX_HELD_BYTES:
            self.transport.pause_reading()

    @property
    def without_length(self) -> bool:
        """Only the connection's end will tell where the answer ends."""
        return self.answer.content_length is None and not self.answer.chunked

    def _take_body(self, data: bytes) -> None:
        if self._excess and self.answer.chunked and not self._decoding:
            self.error = "it sent more than one answer"  # which is not told apart from the first
            self.lose(AttemptOutcome.RESET if self.client is None else AttemptOutcome.STREAM)
            return
        now_s = monotonic()
        if self._decoding and not self._decode():
            return
        if self.client is None and not self._begin(data, now_s):
            return
        if self.awaits_byte and self._begun:
            self.awaits_byte = False
            cast(Sink, self.sink).on_first_byte(self, now_s)
        if self._decoding:
            self._forward_decoded()
        elif data or self._held:
            self._forward(self._held + data if self._held else data, now_s)
        if self.lead:
            self._write(b"")
        self.last_byte_s = now_s
        if self._complete:
            self._finish(now_s)

    def _begin(self, data: bytes, now_s: float) -> bool:
        """Tell the client, if that may be done now; ``data`` is kept if not."""
        if self._unjudged and not self._judge(data):
            return False
        if not self._may_start():
            self._hold_back(data)
            return False
        return self._start(now_s)

    def _hold_back(self, data: bytes) -> None:
        """Keep what can't be forwarded yet."""
        if len(self._held) + len(data) <= MAX_UNBEGUN_BYTES:
            self._held += data
            return
        self._lose_endless()

    def _lose_endless(self) -> None:
        self.error = "it sends framing without end"
        self.lose(AttemptOutcome.RESET if self.client is None else AttemptOutcome.STREAM)

    def _judge(self, data: bytes) -> bool:
        """See whether the answer is an error though its status is 200. True: go on with ``data``;
        False: it is kept, or the answer has become another."""
        answer = self.answer
        events = answer.event_stream
        error = error_of(self._first, events=events, complete=self._complete)
        if error is None:
            self._hold_back(data)
            return False
        self._unjudged = False
        self._first = b""
        if error == GOOD:
            return True
        self._become(error)
        return False

    def _become(self, error: bytes) -> None:
        """Go on as if ``error`` had come as an error answer."""
        answer = self.answer
        answer.become(status_of(error), len(error))
        self.error = f"an error under status 200: {error[:200].decode('utf-8', 'replace')}"
        self._complete, self._decoding = True, False
        self._held = self._out = b""
        sink = self.sink
        if sink is not None and sink.on_head(self):
            self._take_body(error)
        elif self._on_hold:
            self._raw = error

    def _may_start(self) -> bool:
        """Whether the client may be told: before that, another endpoint can still be asked."""
        if self._complete:
            return True
        if self.collects:
            return False
        return bool(self._out) if self.request.inbound is not None else self._begun

    @property
    def collects(self) -> bool:
        """The answer is translated as a whole, so that nothing is forwarded before its end."""
        inbound = self.request.inbound
        return inbound is not None and (not inbound.streaming or self.answer.status >= 400)

    def _start(self, now_s: float) -> bool:
        """The body begins; False if it is not wanted."""
        sink = self.sink
        client = sink.on_first(self, now_s) if sink is not None else None
        if client is None:
            return False
        self.client = client
        self.last_byte_s = now_s
        return True

    def begin_silent(self, now_s: float) -> bool:
        """Tell the client of a stream whose head is there before its first event, which takes long:
        comments can follow. False if that can't be. No other endpoint can be asked from then on."""
        answer = self.answer
        is_stream = answer.status == 200 and answer.event_stream and answer.content_length is None
        if self._in_head or self._on_hold or self.request.inbound is not None or not is_stream:
            return False
        self._unjudged, self._first = False, b""
        self.awaits_byte = True
        if not self._start(now_s):
            return False
        self._write(b"")
        return True

    def _decode(self) -> bool:
        """Take what the parser found out of its framing, translated where that is needed; False
        if it makes no sense."""
        inbound = self.request.inbound
        if self.collects and not self._complete:
            return True
        data = b"".join(self._decoded)
        self._decoded.clear()
        if inbound is None:
            self._out += data
            return True
        try:
            if self.answer.status >= 400:
                self.answer.status, self._out = inbound.error(self.answer.status, data)
                return True
            self._out += inbound.body(data)
            self._complete = self._complete or inbound.done
            if self._complete:
                self._out += inbound.end()
        except AdapterError as error:
            self.error = str(error)
            self._complete = False
            if self.client is not None:
                self._forward_decoded()
            self.lose(AttemptOutcome.STATUS if self.client is None else AttemptOutcome.STREAM)
            return False
        return True

    def _forward(self, data: bytes, now_s: float) -> None:
        """Forward ``data`` as it came, up to the end of the answer."""
        if self.answer.chunked:
            data = self._whole_chunks(data)
            if not data:
                return
        else:
            self._held = b""
            data = data[: (self.answer.content_length or 0) - self.nbytes]
        self._last = data
        self._ends.append(data if len(data) < USAGE_BYTES else data[-USAGE_BYTES:])
        self.chunks += 1
        self.nbytes += len(data)
        if self.chunks > 1:
            self.server.observe_gap(now_s - self.last_byte_s)
        if self.lead:
            self._write(data)
        else:
            self.client.write(data)  # type: ignore[union-attr]  # _take_body has set it

    def _write(self, data: bytes) -> None:
        """Write ``data``, after the head if that has still to be written."""
        lead, self.lead = self.lead, b""
        cast(Client, self.client).write(lead + data)

    def _whole_chunks(self, data: bytes) -> bytes:
        """What may be forwarded of ``data``; the rest is held."""
        self._held = b""
        if self._complete:
            return data[: len(data) - excess_line_ends(self._tail + data)]
        if not self._open_chunk and data[-2:] == b"\r\n":
            self.whole = True
            return data
        end = end_of_chunks(data) if self.whole else len(data)
        if len(data) - end < MAX_HELD_BYTES:
            self._held = data[end:]
            return data[:end]
        self._tail = data[-8:]
        self.whole = False
        return data

    def _forward_decoded(self) -> None:
        """Forward without the endpoint's framing: translated, or for a client without chunks."""
        data, self._out = self._out, b""
        if data:
            self._last = data
            self._ends.append(data if len(data) < USAGE_BYTES else data[-USAGE_BYTES:])
            self.chunks += 1
            self.nbytes += len(data)
            if self.rechunk:
                data = b"%x\r\n%s\r\n" % (len(data), data)
        if self._complete and self.rechunk:
            data += b"0\r\n\r\n"
        if data:
            self._write(data)

    @property
    def collected_bytes(self) -> int:
        """Of an answer that is translated as a whole."""
        return len(self._out)

    def _end_without_length(self) -> None:
        """The connection's end is the end of an answer that has no length."""
        if self.without_length:
            self._complete = True
            self._take_body(b"")

    def _finish(self, now_s: float) -> None:
        sink, self.sink = self.sink, None
        if sink is None:
            return
        inbound = self.request.inbound
        unread = inbound is not None and inbound.done
        keep = self._keep and not unread and not self._excess and not self.transport.is_closing()
        sink.on_done(self, now_s)
        if keep:
            self.server.free(self)
        else:
            self.close()

    @property
    def streams_events(self) -> bool:
        """The client gets ``text/event-stream``."""
        inbound = self.request.inbound
        return self.answer.event_stream if inbound is None else inbound.streaming

    @property
    def takes_events(self) -> bool:
        """An event of ours can follow what was forwarded: it ends with a whole event and where
        another chunk may begin."""
        whole_chunks = self.answer.chunked and self.whole and not self._decoding
        between_chunks = self.rechunk or self._is_bare or whole_chunks
        between_events = not self.nbytes or self._last.endswith(EVENT_ENDS)
        return self.streams_events and between_chunks and between_events

    @property
    def _is_bare(self) -> bool:
        """The client, of HTTP/1.0, gets the body without framing, up to the connection's end."""
        return self._decoding and not self.rechunk and self.answer.content_length is None

    def told(self, event: bytes) -> bytes:
        """``event``, of ours, as it goes to the client."""
        return event if self._is_bare else b"%x\r\n%s\r\n" % (len(event), event)

    def told_last(self, event: bytes) -> bytes:
        """The same with the end of the answer."""
        return event if self._is_bare else self.told(event) + b"0\r\n\r\n"

    def comment(self, now_s: float) -> None:
        """Tell the client that its stream goes on though it is silent: by a comment (HTML Standard,
        9.2.6), which can only stand between two events."""
        if self.takes_events:
            self.commented_s = now_s
            cast(Client, self.client).write(self.told(COMMENT))

    @property
    def usage(self) -> PartialUsage:
        """What the endpoint counted, if the answer says so and is complete."""
        if not self._complete or self.answer.status >= 300:
            return NO_USAGE
        if self._usage is None:
            self._usage = find_usage(b"".join(self._ends))
        return self._usage

    def output_tokens(self) -> int:
        """The tokens in the answer; where it has no count an estimate: events of a stream, a
        quarter of other bytes."""
        if counted := self.usage.output_tokens:
            return counted
        if not self.request.generates:
            return 0
        if self.streams_events:
            return self.chunks
        return self.nbytes // 4

    def forget(self) -> None:
        """Let go of the last request, before waiting for the next one."""
        del self.attempt, self.request, self.answer, self.client

    # -- endings ---------------------------------------------------------------------------

    def drop(self) -> None:
        """The answer is not wanted any more: the endpoint sees the connection close."""
        self.sink = None
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        self.close()

    def lose(self, outcome: AttemptOutcome) -> None:
        """No more will come of this answer."""
        sink, self.sink = self.sink, None
        self.close()
        if sink is None:
            return
        if self._reused and self._in_head and not self._raw and outcome is AttemptOutcome.RESET:
            outcome = AttemptOutcome.CLOSED
        sink.on_lost(self, outcome, monotonic())

    def close(self) -> None:
        self.server.forget(self)
        if self.transport is not None:
            self.transport.abort()
