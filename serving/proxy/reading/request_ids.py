"""What requests are called: an id of our own, which no other request has, and the client's."""

from __future__ import annotations

import re
import secrets
from typing import Final

from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.reading.headers import REQUEST_ID

__all__ = ["RequestIds", "for_endpoint"]

_GIVEN: Final = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives every request its id; one worker's.

    Clients may send ``x-request-id``, and several may send the same one: it is told back to them
    and passed on, but nothing here goes by it.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._count = 0

    def name(self, call: Call) -> str:
        """The id of ``call``, which no other request has, of any worker or router; the client's own
        is kept beside it if it is one."""
        if not call.request_id:
            self._count += 1
            call.request_id = f"{self._prefix}{self._count:x}"
            given = call.special.get(REQUEST_ID)
            if given is not None and _GIVEN.fullmatch(given):
                call.given_id = given.decode("ascii")
        return call.request_id

    def fields(self, call: Call) -> bytes:
        """The header fields with both ids."""
        own = self.name(call)
        return b"x-request-id: %s\r\nx-trainmesh-request-id: %s\r\n" % (
            (call.given_id or own).encode(),
            own.encode(),
        )


def for_endpoint(call: Call, name: str) -> bytes:
    """What an endpoint is told: unlike any other request's, as engines refuse or mix up those with
    an id that is in use; begins with the client's own, which the engine's log then has."""
    return f"{call.given_id}-{name}".encode() if call.given_id else name.encode()
