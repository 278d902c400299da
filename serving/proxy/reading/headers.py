"""Which header fields end here, and which go on."""

from __future__ import annotations

from typing import Final

__all__ = [
    "API_KEY",
    "ASKED_HEADERS",
    "ASKED_METHOD",
    "AUTHORIZATION",
    "CONNECTION",
    "CONTENT_ENCODING",
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
    "VIA",
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
API_KEY: Final = 11
CONTENT_ENCODING: Final = 12
"""Of a request's body; an answer's goes on."""
ASKED_METHOD: Final = 13
"""What a preflight asks for (Fetch Standard, 3.3.2); so does the next one."""
ASKED_HEADERS: Final = 14
VIA: Final = 15
"""Of routers like this one."""
CONTENT_TYPE: Final = 16
"""It matters in an answer, and goes on in any case; so does the next one."""
RETRY_AFTER: Final = 17

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
    b"api-key": API_KEY,
    b"content-encoding": CONTENT_ENCODING,
    b"access-control-request-method": ASKED_METHOD,
    b"access-control-request-headers": ASKED_HEADERS,
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
    b"x-trainmesh-via": VIA,
    # Which web pages may ask is for us to say (``cors``), whatever an endpoint thinks of it.
    b"access-control-allow-credentials": DROP,
    b"access-control-allow-headers": DROP,
    b"access-control-allow-methods": DROP,
    b"access-control-allow-origin": DROP,
    b"access-control-expose-headers": DROP,
    b"access-control-max-age": DROP,
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
