"""Which header fields end here, and which go on."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Field", "field", "nominated"]


class Field(IntEnum):
    """What a header field means to the proxy."""

    PASS = 0
    DROP = 1
    """Of one connection only (RFC 9110, 7.6.1), or written anew."""
    CONNECTION = 2
    CONTENT_LENGTH = 3
    TRANSFER_ENCODING = 4
    HOST = 5
    AUTHORIZATION = 6
    EXPECT = 7
    REQUEST_ID = 8
    TRACEPARENT = 9
    ORIGIN = 10
    CONTENT_TYPE = 11
    CONTENT_ENCODING = 12
    RETRY_AFTER = 13


_KNOWN = {
    b"connection": Field.CONNECTION,
    b"content-length": Field.CONTENT_LENGTH,
    b"transfer-encoding": Field.TRANSFER_ENCODING,
    b"host": Field.HOST,
    b"authorization": Field.AUTHORIZATION,
    b"expect": Field.EXPECT,
    b"x-request-id": Field.REQUEST_ID,
    b"traceparent": Field.TRACEPARENT,
    b"origin": Field.ORIGIN,
    b"content-type": Field.CONTENT_TYPE,
    b"content-encoding": Field.CONTENT_ENCODING,
    b"retry-after": Field.RETRY_AFTER,
    b"keep-alive": Field.DROP,
    b"proxy-authenticate": Field.DROP,
    b"proxy-authorization": Field.DROP,
    b"proxy-connection": Field.DROP,
    b"te": Field.DROP,
    b"trailer": Field.DROP,
    b"upgrade": Field.DROP,
    b"http2-settings": Field.DROP,
    b"x-trainmesh-endpoint": Field.DROP,
    b"x-trainmesh-request-id": Field.DROP,
}
_SPELLED: dict[bytes, Field] = dict(_KNOWN)
_MAX_SPELLINGS = 4096


def field(name: bytes) -> Field:
    """What the field ``name`` is, however it is spelled."""
    known = _SPELLED.get(name)
    if known is None:
        known = _KNOWN.get(name.lower(), Field.PASS)
        if len(_SPELLED) < _MAX_SPELLINGS:
            _SPELLED[name] = known
    return known


def nominated(connection: bytes) -> frozenset[bytes]:
    """Names, in lower case, that a ``Connection`` field says are of this connection only."""
    return frozenset(token.strip().lower() for token in connection.split(b","))
