"""A request as it is sent to an endpoint, and its answer as it is read."""

from __future__ import annotations

from http import HTTPStatus
from typing import Protocol

from trainmesh.serving.adapters.types import Inbound
from trainmesh.serving.proxy.reading.headers import (
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    DROP,
    REQUEST_ID,
    RETRY_AFTER,
    TRANSFER_ENCODING,
    field,
    nominated,
)

__all__ = ["AnswerHead", "Client", "UpstreamRequest", "end_of_chunks", "excess_line_ends"]


class Client(Protocol):
    """Where an answer's bytes go."""

    def write(self, data: bytes) -> None: ...


class UpstreamRequest:
    """What is sent: bytes of the head and body, and how the answer is to be read."""

    __slots__ = ("body", "decode", "generates", "head", "inbound")

    def __init__(
        self,
        head: bytes,
        body: bytes,
        inbound: Inbound | None,
        *,
        decode: bool,
        generates: bool = True,
    ) -> None:
        self.head = head
        self.body = body
        self.inbound = inbound
        self.decode = decode
        """Hand on the body without its chunk framing."""
        self.generates = generates
        """The answer is text, whose tokens count; embeddings are none."""


class AnswerHead:
    """The head of an answer, as it will be told to the client."""

    __slots__ = ("_compressed", "_content_type", "chunked", "connection", "content_length",
                 "fields", "reason", "retry_after_s", "status")  # fmt: skip

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.chunked = False
        self.content_length: int | None = None
        self.connection = b""
        self.retry_after_s = 0.0
        self._content_type = b""
        self._compressed = False

    @property
    def event_stream(self) -> bool:
        """Events that can be read, and another put between them: they are not compressed."""
        return self._content_type.startswith(b"text/event-stream") and not self._compressed

    @property
    def is_text(self) -> bool:
        """JSON or events, in which an error can be seen."""
        is_json = self._content_type.startswith(b"application/json") and not self._compressed
        return is_json or self.event_stream

    def head(self) -> bytes:
        """The fields that go on, each with its line end."""
        gone = nominated(self.connection) if self.connection else ()
        return b"".join(
            [
                b"%s: %s\r\n" % pair
                for pair in self.fields
                if not gone or pair[0].lower() not in gone
            ]
        )

    def become(self, status: int, length: int) -> None:
        """An error was found in the body: the head that should have come with it."""
        self.status = status
        phrases = {each.value: each.phrase for each in HTTPStatus}
        self.reason = phrases.get(status, "Error").encode()
        self.fields = [pair for pair in self.fields if field(pair[0]) != CONTENT_TYPE]
        self.fields.append((b"content-type", b"application/json"))
        self._content_type, self.chunked = b"application/json", False
        self.content_length = length

    def note(self, name: bytes, value: bytes) -> None:
        """Take a header field.

        Raises:
            ValueError: its value makes no sense.
        """
        kind = field(name)
        if kind == CONTENT_LENGTH:
            self.content_length = int(value)
            return
        if kind == TRANSFER_ENCODING:
            if self.chunked or value.strip().lower() != b"chunked":
                raise ValueError("only Transfer-Encoding: chunked is understood")
            self.chunked = True
            return
        if kind == CONNECTION:
            self.connection += b"," + value
            return
        if kind in (DROP, REQUEST_ID):
            return
        self.fields.append((name, value))
        if kind == CONTENT_TYPE:
            self._content_type = value.lower()
        elif kind == CONTENT_ENCODING:
            self._compressed = value.strip().lower() != b"identity"
        elif kind == RETRY_AFTER and value.isdigit() and len(value) < 7:
            self.retry_after_s = float(value)


def end_of_chunks(data: bytes) -> int:
    """Where the last complete chunk of ``data`` ends, which begins with a chunk's size."""
    end = 0
    while True:
        line = data.find(b"\r\n", end)
        if line < 0:
            return end
        size = int(data[end:line].partition(b";")[0], 16)
        following = line + 4 + size
        if not size or following > len(data):
            return end
        end = following


def excess_line_ends(end: bytes) -> int:
    """How many bytes follow a chunked body at ``end``: parsers skip empty lines between messages,
    but they are not the client's. A body ends in one empty line, and no other is in its end."""
    stripped = end.rstrip(b"\r\n")
    return max(0, len(end) - len(stripped) - 4)
