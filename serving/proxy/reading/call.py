"""A request of a client, as it came."""

from __future__ import annotations

from trainmesh.serving.identity.authenticator import Tenant
from trainmesh.serving.proxy.reading.headers import CONNECTION, nominated

__all__ = ["Call", "HeldBodies"]


class Call:
    """A request as it came, without the fields that were for us only."""

    __slots__ = ("adapter", "body", "fields", "given_id", "http10", "keep_alive", "method",
                 "model", "parts", "passed_key", "path", "place", "query", "received_s",
                 "request_id", "size", "special", "target", "tenant")  # fmt: skip

    def __init__(self) -> None:
        self.place = 0
        """Among the requests of its connection, from 1."""
        self.method = b""
        self.target = self.path = self.query = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.special: dict[int, bytes] = {}
        """Values of the fields that mean something to us (``headers``)."""
        self.keep_alive = True
        self.http10 = False
        self.parts: list[bytes] = []
        self.size = 0
        self.body = b""
        self.received_s = 0.0
        self.request_id = ""
        """Ours: no other request has it. Empty until it is needed."""
        self.given_id = ""
        """The client's own, where it sends one that can be passed on."""
        self.tenant: Tenant | None = None
        self.model = ""
        """As the client named it."""
        self.adapter = False
        """``model`` is an adapter of ours, which endpoints know by that name."""
        self.passed_key = b""
        """The Authorization field for an endpoint, where the router itself wants none."""

    def passed_fields(self) -> list[tuple[bytes, bytes]]:
        """The fields that go on to an endpoint."""
        connection = self.special.get(CONNECTION)
        if not connection:
            return self.fields
        gone = nominated(connection)
        return [pair for pair in self.fields if pair[0].lower() not in gone]


class HeldBodies:
    """The bodies that a worker holds, whole or in part, of all its connections."""

    __slots__ = ("nbytes",)

    def __init__(self) -> None:
        self.nbytes = 0

    def add(self, call: Call, data: bytes) -> None:
        """More of the body of ``call`` has come."""
        call.size += len(data)
        self.nbytes += len(data)
        call.parts.append(data)

    def release(self, call: Call) -> None:
        """The body of ``call`` is not needed any more."""
        if not call.size:
            return
        self.nbytes -= call.size
        call.size = 0
        call.body = b""
        call.parts = []
