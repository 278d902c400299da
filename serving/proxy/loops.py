"""Requests that come back to the router that has sent them: an endpoint's url leads to it, by way
of other routers perhaps. Each would be sent round until nothing is left to send it with.
"""

from __future__ import annotations

from typing import Final

from trainmesh.serving.refusal import refused

__all__ = ["ViaChain"]

FIELD: Final = b"x-trainmesh-via"
"""Not ``Via`` (RFC 9110, 7.6.3): nginx compresses nothing for those who send it."""


class ViaChain:
    """The routers that a request has been through. Args: ``own``: this one's name, which no other
    has."""

    def __init__(self, own: bytes) -> None:
        self._own = own

    def check(self, before: bytes | None) -> None:
        """``before``: what the request's field says.

        Raises:
            RequestRefused: 508, it has been here.
        """
        if before is not None and self._own in [name.strip() for name in before.split(b",")]:
            raise refused(
                508, "this request has been through this router before: an endpoint's url leads "
                "back to it", code="loop_detected",
            )  # fmt: skip

    def field(self, before: bytes | None) -> bytes:
        """The header line for an endpoint."""
        names = self._own if before is None else before + b", " + self._own
        return b"%s: %s\r\n" % (FIELD, names)
