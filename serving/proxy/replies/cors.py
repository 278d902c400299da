"""Which web pages of other origins may ask, and read the answers (Fetch Standard, 3.3).

Browsers ask first (a preflight: OPTIONS without a key), and show a page only answers that name its
origin. Nothing of this reaches an endpoint, and what endpoints say of it is left out (``headers``).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from trainmesh.serving.config.types import ANY, CorsConfig
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import ASKED_HEADERS, ASKED_METHOD, ORIGIN
from trainmesh.serving.refusal import refused

__all__ = ["Cors", "check_origin"]

_LOOPBACK: Final = re.compile(r"localhost|127(\.\d+){3}|::1")
_NAMES: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, \t-]{1,8192}")
"""A list of field names."""


class Cors:
    """What ``cors`` of serve.yaml says, in header fields."""

    def __init__(self, config: CorsConfig) -> None:
        self._origins = frozenset(origin.lower().encode() for origin in config.origins)
        self._any = ANY in config.origins
        exposed = ", ".join(config.expose_headers).encode()
        self._more = b""
        if config.credentials:
            self._more += b"access-control-allow-credentials: true\r\n"
        if exposed:
            self._more += b"access-control-expose-headers: %s\r\n" % exposed
        self._methods = ", ".join(config.methods).encode()
        self._any_headers = ANY in config.headers
        self._headers = ", ".join(config.headers).encode()
        self._max_age_s = config.max_age_s

    def allows(self, origin: bytes) -> bool:
        """Whether pages of ``origin`` may ask."""
        return self._any or origin.lower() in self._origins

    def is_preflight(self, call: Call) -> bool:
        """Whether a browser asks what a page may ask; to be answered without a key."""
        special = call.special
        return call.method == b"OPTIONS" and ORIGIN in special and ASKED_METHOD in special

    def fields(self, call: Call) -> bytes:
        """Header fields of any answer to ``call``, errors and preflights included."""
        if self._any:
            return b"access-control-allow-origin: *\r\n" + self._more
        origin = call.special.get(ORIGIN)
        if origin is None or not self.allows(origin):
            return b"vary: origin\r\n"  # to others it is another answer: caches must know
        return b"access-control-allow-origin: %s\r\nvary: origin\r\n" % origin + self._more

    def preflight(self, call: Call, own_fields: bytes) -> bytes:
        """The answer to a preflight; ``own_fields`` as of any answer.

        Raises:
            RequestRefused: 403, pages of its origin may not ask.
        """
        if not self.allows(call.special[ORIGIN]):
            raise refused(
                403, "pages of this origin may not ask: it is not among cors.origins",
                code="origin_not_allowed",
            )  # fmt: skip
        headers = self._headers
        if self._any_headers:
            asked = call.special.get(ASKED_HEADERS, b"")
            headers = asked if _NAMES.fullmatch(asked) else b""
        lines = [
            b"HTTP/1.1 204 No Content\r\n",
            own_fields,
            b"access-control-allow-methods: %s\r\n" % self._methods,
            b"access-control-allow-headers: %s\r\n" % headers if headers else b"",
            b"access-control-max-age: %d\r\n" % self._max_age_s,
            b"vary: access-control-request-method, access-control-request-headers\r\n\r\n",
        ]
        return b"".join(lines)


def check_origin(origin: bytes | None, cors: Cors | None) -> None:
    """A router without keys answers everybody who reaches it, also pages that a browser beside it
    shows: those of other hosts only where ``cors`` allows it.

    Raises:
        RequestRefused: 403.
    """
    if not origin or _LOOPBACK.fullmatch(_host_of(origin)):
        return
    if cors is None or not cors.allows(origin):
        raise refused(
            403, "web pages of other hosts may not ask without a key; cors.origins of "
            "serve.yaml says which may", code="origin_not_allowed",
        )  # fmt: skip


def _host_of(origin: bytes) -> str:
    try:
        return urlsplit(origin.decode("ascii")).hostname or ""
    except ValueError:
        return ""
