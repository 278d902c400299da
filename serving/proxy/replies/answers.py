"""Answers that the router gives itself, in OpenAI's form."""

from __future__ import annotations

import math
from http import HTTPStatus

from trainmesh.serving.api_errors import error_body
from trainmesh.serving.refusal import Refusal

__all__ = ["interrupted_event", "json_answer", "refusal_answer"]


def refusal_answer(
    refusal: Refusal, *, head: bytes = b"", close: bool = False, bodiless: bool = False
) -> bytes:
    """The whole answer; ``head`` is added to its header fields, ``bodiless``: to HEAD."""
    fields = head + refusal.fields
    if refusal.retry_after_s is not None:
        fields += b"retry-after: %d\r\n" % max(1, math.ceil(refusal.retry_after_s))
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        fields += b"www-authenticate: Bearer\r\n"
    return json_answer(refusal.status, refusal.body, head=fields, close=close, bodiless=bodiless)


def json_answer(
    status: int, body: bytes, *, head: bytes = b"", close: bool = False, bodiless: bool = False
) -> bytes:
    """An HTTP/1.1 answer with a JSON ``body``; ``bodiless``: to a HEAD request."""
    phrase = HTTPStatus(status).phrase.encode()
    last = b"connection: close\r\n" if close else b""
    return (
        b"HTTP/1.1 %d %s\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s"
        % (
            status,
            phrase,
            head,
            len(body),
            last,
            b"" if bodiless else body,
        )
    )


def interrupted_event(message: str) -> bytes:
    """The SSE event that ends a stream which can't go on. No ``[DONE]`` follows it."""
    body = error_body(502, message, code="stream_interrupted")
    return b"data: %s\n\n" % body
