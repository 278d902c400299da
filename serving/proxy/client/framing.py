"""How the client is told where an answer ends."""

from __future__ import annotations

from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["answer_framing", "answer_head"]


def answer_framing(upstream: Upstream, call: Call) -> bytes:
    """The fields of an answer's head, those that frame its body included. Sets whether the body is
    put into chunks, and that the connection ends where nothing else tells the answer's end."""
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


def answer_head(
    upstream: Upstream, own_fields: bytes, framing: bytes, call: Call, *, last: bool
) -> bytes:
    """The head of an answer as its client gets it.

    Args:
        upstream: whose answer.
        own_fields: the router's own header fields.
        framing: from ``answer_framing``.
        call: what is answered.
        last: the connection ends with it.
    """
    connection = b"connection: keep-alive\r\n" if call.http10 else b""
    if last:
        connection = b"connection: close\r\n"
    answer = upstream.answer
    return b"HTTP/1.1 %d %s\r\n%s%s%s\r\n" % (
        answer.status, answer.reason, own_fields, framing, connection,
    )  # fmt: skip
