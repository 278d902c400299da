"""Which header fields end here, and which go on."""

from __future__ import annotations

from typing import Final

__all__ = [
    "AUTHORIZATION",
    "CONNECTION",
    "CONTENT_LENGTH",
    "CONTENT_TYPE",
    "DROP",
    "EXPECT",
    "HOST",
    "ORIGIN",
    "PASS",
    "REQUEST_ID",
    "RETRY_AFTER",
    "TRACEPARENT",
    "TRANSFER_ENCODING",
    "field",
    "nominated",
]

# What a field means to the proxy: plain numbers, as they are looked up for every field.
PASS: Final = 0
DROP: Final = 1
"""Of one connection only (RFC 9110, 7.6.1), or written anew."""
CONNECTION: Final = 2
CONTENT_LENGTH: Final = 3
TRANSFER_ENCODING: Final = 4
HOST: Final = 5
AUTHORIZATION: Final = 6
EXPECT: Final = 7
REQUEST_ID: Final = 8
TRACEPARENT: Final = 9
ORIGIN: Final = 10
CONTENT_TYPE: Final = 11
"""It matters in an answer, and goes on in any case; so does the next one."""
RETRY_AFTER: Final = 12

_KNOWN: Final = {
    b"connection": CONNECTION,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"host": HOST,
    b"authorization": AUTHORIZATION,
    b"expect": EXPECT,
    b"x-request-id": REQUEST_ID,
    b"traceparent": TRACEPARENT,
    b"origin": ORIGIN,
    b"content-type": CONTENT_TYPE,
    b"retry-after": RETRY_AFTER,
    b"keep-alive": DROP,
    b"proxy-authenticate": DROP,
    b"proxy-authorization": DROP,
    b"proxy-connection": DROP,
    b"te": DROP,
    b"trailer": DROP,
    b"upgrade": DROP,
    b"http2-settings": DROP,
    b"x-trainmesh-endpoint": DROP,
    b"x-trainmesh-request-id": DROP,
}
_SPELLED: Final = dict(_KNOWN)
_MAX_SPELLINGS: Final = 4096


def field(name: bytes) -> int:
    """What the field ``name`` is, however it is spelled."""
    known = _SPELLED.get(name)
    if known is None:
        known = _KNOWN.get(name.lower(), PASS)
        if len(_SPELLED) < _MAX_SPELLINGS:
            _SPELLED[name] = known
    return known


def nominated(connection: bytes) -> frozenset[bytes]:
    """Names, in lower case, that a ``Connection`` field says are of this connection only."""
    return frozenset(token.strip().lower() for token in connection.split(b","))
