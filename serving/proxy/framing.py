"""How the client is told where an answer ends."""

from __future__ import annotations

from trainmesh.serving.proxy.call import Call
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["answer_framing"]


def answer_framing(upstream: Upstream, call: Call) -> list[bytes]:
    """The fields of an answer's head, those that frame its body included. Sets whether the body is
    put into chunks, and that the connection ends where nothing else tells the answer's end."""
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
    if call.http10 and answer.content_length is None and not upstream.collects:
        call.keep_alive = False
    return lines
