"""A reader of HTTP/1.1 requests that takes nothing it could misunderstand (RFC 9112, 3 to 7).

What a proxy sends on must pass here; whatever is refused here could be read in two ways.
"""

import re
from dataclasses import dataclass

__all__ = ["Ambiguous", "Incomplete", "Request", "read_requests"]

LINE = re.compile(rb"(GET|POST|HEAD|OPTIONS) (/[!-~]*) HTTP/1\.[01]")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t !-~\x80-\xff]*)")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t !-~]*)?")


class Ambiguous(Exception):
    """Two readers could take this differently."""


class Incomplete(Exception):
    """More bytes have to come."""


@dataclass(frozen=True)
class Request:
    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    """Names in lower case."""
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


def read_requests(data: bytes) -> list[Request]:
    """All of ``data`` as requests.

    Raises:
        Ambiguous: it is not plainly that.
        Incomplete: the last one is cut off.
    """
    requests = []
    while data:
        request, data = _read_one(data)
        requests.append(request)
    return requests


def _read_one(data: bytes) -> tuple[Request, bytes]:
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        raise Incomplete(data)
    first, *lines = head.split(b"\r\n")
    line = LINE.fullmatch(first)
    if not line:
        raise Ambiguous(f"request line {first!r}")
    fields = []
    for text in lines:
        match = FIELD.fullmatch(text)
        if not match:
            raise Ambiguous(f"field {text!r}")
        fields.append((match[1].lower(), match[2].rstrip(b" \t")))
    request = Request(line[1], line[2], tuple(fields), b"")
    body, rest = _read_body(request, rest)
    return Request(request.method, request.target, request.fields, body), rest


def _read_body(request: Request, rest: bytes) -> tuple[bytes, bytes]:
    lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
    if len(request.values(b"host")) != 1:
        raise Ambiguous("not one Host")
    if len(lengths) + len(codings) > 1:
        raise Ambiguous(f"framed twice: {lengths} {codings}")
    if codings:
        if codings[0].lower() != b"chunked":
            raise Ambiguous(f"transfer coding {codings[0]!r}")
        return _read_chunks(rest)
    size = lengths[0] if lengths else b"0"
    if not size.isdigit():
        raise Ambiguous(f"length {size!r}")
    if len(rest) < int(size):
        raise Incomplete(rest)
    return rest[: int(size)], rest[int(size) :]


def _read_chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, found, data = data.partition(b"\r\n")
        if not found:
            raise Incomplete(line)
        match = CHUNK.fullmatch(line)
        if not match:
            raise Ambiguous(f"chunk size {line!r}")
        size = int(match[1], 16)
        if size == 0:
            break
        if len(data) < size + 2:
            raise Incomplete(data)
        if data[size : size + 2] != b"\r\n":
            raise Ambiguous("a chunk is longer than its size")
        body, data = body + data[:size], data[size + 2 :]
    if not data.startswith(b"\r\n"):
        raise Ambiguous(f"trailers {data[:100]!r}") if len(data) > 1 else Incomplete(data)
    return body, data[2:]
