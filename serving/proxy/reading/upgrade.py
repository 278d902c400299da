"""Requests that offer to upgrade to another protocol, and have a body.

A server that speaks no other protocol ignores the offer (RFC 9110, 7.8): the body is read as with
any request. httptools leaves the body out and stops behind the head, as if the other protocol began
there. So a second parser goes on: it is fed a head with the framing alone, and then what follows.
"""

from __future__ import annotations

from typing import Protocol

from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import CONTENT_LENGTH, TRANSFER_ENCODING

__all__ = ["Continued", "framing_head"]


class Reader(Protocol):
    """What a parser of requests calls (``client.request_reader.RequestReader``)."""

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


def framing_head(call: Call) -> bytes:
    """A head with the fields that say where ``call``'s body ends, as they came, and nothing else:
    a parser refuses them here if it would without the offer."""
    special = call.special
    lines = [b"POST / HTTP/1.0" if call.http10 else b"POST / HTTP/1.1"]
    if (length := special.get(CONTENT_LENGTH)) is not None:
        lines.append(b"content-length: " + length)
    if (coding := special.get(TRANSFER_ENCODING)) is not None:
        lines.append(b"transfer-encoding: " + coding)
    lines.append(b"connection: keep-alive" if call.keep_alive else b"connection: close")
    return b"\r\n".join([*lines, b"", b""])


class Continued:
    """What a parser calls that goes on with a request whose head another parser has read. The head
    that it is fed first is dropped; all that follows is for ``reader``."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._in_head = True

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._reader.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._in_head:
            self._reader.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._reader.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._in_head:
            self._in_head = False
        else:
            self._reader.on_headers_complete()

    def on_body(self, data: bytes) -> None:
        self._reader.on_body(data)

    def on_message_complete(self) -> None:
        self._reader.on_message_complete()
