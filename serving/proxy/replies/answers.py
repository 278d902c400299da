"""Answers that the router gives itself, in OpenAI's form."""

from __future__ import annotations

import math
from http import HTTPStatus

from trainmesh.serving.api_errors import error_body

__all__ = ["Refusal", "interrupted_event", "json_answer"]


class Refusal(Exception):
    """A request that gets no endpoint: status, one line for its sender, and a code for programs.

    ``retry_after_s`` is sent along where it is set, and so are further header ``fields``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        fields: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.fields = fields

    def answer(self, *, head: bytes = b"", close: bool = False, bodiless: bool = False) -> bytes:
        """The whole answer; ``head`` is added to its header fields, ``bodiless``: to HEAD."""
        fields = head + self.fields
        if self.retry_after_s is not None:
            fields += b"retry-after: %d\r\n" % max(1, math.ceil(self.retry_after_s))
        if self.status == HTTPStatus.UNAUTHORIZED:
            fields += b"www-authenticate: Bearer\r\n"
        body = error_body(self.status, str(self), code=self.code, param=self.param)
        return json_answer(self.status, body, head=fields, close=close, bodiless=bodiless)


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
