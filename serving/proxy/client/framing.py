"""The head of an answer as its client gets it, and how it is told where the answer ends."""

from __future__ import annotations

from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["answer_head"]


def answer_head(upstream: Upstream, call: Call, own_fields: bytes, *, last: bool) -> bytes:
    """Sets whether the body is put into chunks, and that the connection ends where nothing else
    tells the answer's end.

    Args:
        upstream: whose answer.
        call: what is answered.
        own_fields: the router's own header fields.
        last: the connection ends with it.
    """
    framing = _framing(upstream, call)
    connection = b"connection: keep-alive\r\n" if call.http10 else b""
    if last or not call.keep_alive:
        connection = b"connection: close\r\n"
    answer = upstream.answer
    return b"HTTP/1.1 %d %s\r\n%s%s%s\r\n" % (
        answer.status, answer.reason, own_fields, framing, connection,
    )  # fmt: skip


def _framing(upstream: Upstream, call: Call) -> bytes:
    """The fields of the endpoint's head that go on, and those that frame the body."""
    answer = upstream.answer
    if upstream.collects:
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % (
            upstream.collected_bytes
        )
    elif upstream.request.inbound is not None:
        fields = b"content-type: text/event-stream\r\n"
        upstream.rechunk = not call.http10
    elif answer.content_length is not None:
        fields = b"%scontent-length: %d\r\n" % (answer.head(), answer.content_length)
    elif answer.chunked and not upstream.request.decode:
        fields = answer.head() + b"transfer-encoding: chunked\r\n"
    elif answer.status not in (204, 304):
        fields = answer.head()
        upstream.rechunk = not call.http10
    else:
        fields = answer.head()
    if upstream.rechunk:
        fields += b"transfer-encoding: chunked\r\n"
    if call.http10 and answer.content_length is None and not upstream.collects:
        call.keep_alive = False
    return fields
