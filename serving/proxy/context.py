"""What the requests of a worker have in common."""

from __future__ import annotations

from typing import Final

from trainmesh.serving.config.types import Config
from trainmesh.serving.observe.log import ACCESS, log_event
from trainmesh.serving.observe.shared_counters import WorkerRow
from trainmesh.serving.observe.trace import Tracer
from trainmesh.serving.proxy.counters import WorkerCounters
from trainmesh.serving.proxy.reading.call import Call, HeldBodies
from trainmesh.serving.proxy.reading.request_ids import RequestIds
from trainmesh.serving.proxy.recorder import Recorder
from trainmesh.serving.proxy.replies.cors import Cors

__all__ = ["WorkerContext"]

MAX_LOGGED: Final = 256
"""Characters of a path or model that a client made up."""


class WorkerContext:
    """One worker's. A reload replaces parts of it, which nobody else may keep.

    Args:
        config: of serve.yaml.
        row: where to count.
        recorder: writes decisions down.
        tracer: of requests; None where none is traced.
    """

    __slots__ = ("_ids", "bodies", "config", "cors", "counters", "recorder", "tracer")

    def __init__(
        self, config: Config, row: WorkerRow, recorder: Recorder, tracer: Tracer | None
    ) -> None:
        self._ids = RequestIds()
        self.bodies = HeldBodies()
        self.recorder = recorder
        self.tracer = tracer
        self.config = config
        self.cors = _cors_of(config)
        self.counters = WorkerCounters(row)

    def configure(self, config: Config, row: WorkerRow) -> None:
        """Go on with another configuration, and count in ``row``."""
        self.config = config
        self.cors = _cors_of(config)
        self.counters = WorkerCounters(row)

    def request_id(self, call: Call) -> str:
        """The id of ``call``, which no other request has."""
        return self._ids.name(call)

    def own_fields(self, call: Call, endpoint: str = "") -> bytes:
        """Our own header fields of every answer.

        Args:
            call: what is answered.
            endpoint: the name of the one that answers, or was asked last.
        """
        fields = self._ids.fields(call)
        if endpoint:
            fields += b"x-trainmesh-endpoint: %s\r\n" % endpoint.encode()
        if self.cors is not None:
            fields += self.cors.fields(call)
        return fields

    def log_access(
        self, call: Call, status: int, now_s: float, model: str = "", endpoint: str = ""
    ) -> None:
        """The line of a request that was answered, or whose client has left."""
        if not self.config.telemetry.access_log:
            return
        path = call.target.partition(b"?")[0][:MAX_LOGGED]  # a query may hold a secret
        log_event(
            ACCESS, "request", id=self._ids.name(call), client_id=call.given_id,
            method=call.method.decode("ascii", "replace"),
            path=path.decode("ascii", "backslashreplace"),
            model=model or call.model[:MAX_LOGGED],
            tenant=call.tenant.name if call.tenant is not None else "",
            status=status, duration_s=round(now_s - (call.received_s or now_s), 6),
            endpoint=endpoint,
        )  # fmt: skip


def _cors_of(config: Config) -> Cors | None:
    return Cors(config.cors) if config.cors is not None else None
