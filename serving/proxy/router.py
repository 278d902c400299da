"""A worker's router: its models and what decides about requests, put together and kept current."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from time import monotonic
from typing import Protocol

from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.control.worker_config import WorkerConfig
from trainmesh.serving.decide.admission.admission import Admission
from trainmesh.serving.identity.authenticator import Tenant
from trainmesh.serving.identity.tls import ServerTls
from trainmesh.serving.ledger.writer import LedgerWriter
from trainmesh.serving.observe.log import LOGGER, log_event
from trainmesh.serving.observe.shared_counters import SharedCounters, WorkerRow
from trainmesh.serving.observe.trace import Tracer
from trainmesh.serving.proxy.context import WorkerContext
from trainmesh.serving.proxy.exchange.exchange import ExchangeClient
from trainmesh.serving.proxy.in_flight import InFlight
from trainmesh.serving.proxy.intake import Intake
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.open_files import connections_that_fit
from trainmesh.serving.proxy.reading.api import POST_PATHS, split_target
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.recorder import Recorder
from trainmesh.serving.proxy.routes import ModelRoutes
from trainmesh.serving.refusal import Refusal

__all__ = ["Router"]


class AcceptedConnection(Protocol):
    """A client's (``client.connection.ClientConnection``)."""

    transport: asyncio.Transport

    def check(self, now_s: float) -> None: ...


class Router:
    """One worker's. Its connections call it; ``tick`` and ``tick_slowly`` are called by the worker.

    Raises:
        ConfigError: the configuration can't be used on this machine.
    """

    def __init__(
        self,
        worker_config: WorkerConfig,
        row: WorkerRow,
        worker: int,
        loop: asyncio.AbstractEventLoop,
        way: ViaChain,
    ) -> None:
        config = self.config = worker_config.config
        self.loop = loop
        self.connections: set[AcceptedConnection] = set()
        self.draining = False
        self._most_connections = connections_that_fit()
        self._way = way
        self._tls = ServerTls(config.tls) if config.tls is not None else None
        telemetry = config.telemetry
        tracer = Tracer(telemetry, f"worker-{worker}") if telemetry.otlp else None
        self._ledger: LedgerWriter | None = None
        if config.ledger.enabled:
            self._ledger = LedgerWriter(Path(config.ledger.dir), worker, config.ledger)
        self._snapshot: Snapshot | None = None
        self._routes = ModelRoutes(loop, way, keeps_rows=config.ledger.enabled)
        self._context = WorkerContext(config, row, Recorder(self._ledger), tracer)
        self.bodies = self._context.bodies
        self._in_flight = InFlight(self._context, Admission(config, {}, now_s=monotonic()))
        self._intake = Intake(self._context, self._routes, way, self._in_flight)
        self.reload(worker_config, row)

    # -- configuration ---------------------------------------------------------------------

    @property
    def listener_tls(self) -> ssl.SSLContext | None:
        """For the listener."""
        return self._tls.context if self._tls is not None else None

    def reload(self, worker_config: WorkerConfig, row: WorkerRow) -> None:
        """Go on with another configuration; requests on their way are not disturbed.

        Raises:
            ConfigError: it can't be used; what has not changed yet stays.
        """
        config, now_s = worker_config.config, monotonic()
        self._routes.configure(config, row, now_s)
        self.config = config
        self._context.configure(config, row)
        self._intake = Intake(self._context, self._routes, self._way, self._in_flight)
        self._in_flight.admission = Admission(
            config, self._routes.pools, now_s=now_s, previous=self._in_flight.admission
        )
        self.hear_keys(worker_config)
        if self._snapshot is not None:
            self.take(self._snapshot, now_s)

    def hear_keys(self, worker_config: WorkerConfig) -> None:
        """The token issuer's keys may be new."""
        self._intake.hear_keys(worker_config)

    def take(self, snapshot: Snapshot, now_s: float) -> None:
        """Decide with ``snapshot`` from now on."""
        self._snapshot = snapshot
        self._context.recorder.version = snapshot.version
        self._intake.hear_listings(snapshot.listings)
        self._routes.take(snapshot, now_s)

    # -- what connections ask --------------------------------------------------------------

    def accepts(self, connection: AcceptedConnection) -> bool:
        """Whether there is room for another connection."""
        most = min(self.config.limits.connections, self._most_connections)
        if len(self.connections) >= most or self.draining:
            self._context.counters.connection_refused()
            return False
        self.connections.add(connection)
        self._context.counters.connection_accepted()
        return True

    def identify(self, call: Call, names: tuple[str, ...]) -> Tenant | None:
        """Who sends ``call``; None where that does not matter.

        Raises:
            RequestRefused: nobody who may.
        """
        return self._intake.identify(call, names)

    def own_fields(self, call: Call, endpoint: str = "") -> bytes:
        """Our own header fields of an answer (``WorkerContext``)."""
        return self._context.own_fields(call, endpoint)

    def open(self, client: ExchangeClient, call: Call) -> bytes | None:
        """Begin to answer ``call``: at once with what is returned, or later through ``client``.

        Raises:
            RequestRefused: it is not served.
        """
        call.path, call.query = split_target(call.target)
        cors = self._context.cors
        if cors is not None and cors.is_preflight(call):
            answer = cors.preflight(call, self._context.own_fields(call))
        elif call.path in POST_PATHS:
            self._in_flight.offer(self._intake.read(client, call), client)
            return None
        else:
            answer = self._intake.local_answer(call)
        status = int(answer[9:12])  # behind "HTTP/1.1 "
        self._context.log_access(call, status, monotonic())
        return answer

    def refused(self, call: Call, refusal: Refusal) -> None:
        """A request was answered with an error of ours; ``call`` is what was read of it."""
        self._context.counters.answered(refusal.status)
        if not call.received_s:
            self._context.counters.bad_request()
        self._context.log_access(call, refusal.status, monotonic())

    # -- time ------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Requests on their way."""
        return len(self._in_flight)

    def tick(self, now_s: float, late_s: float) -> None:
        """Called every 50 ms."""
        counters = self._context.counters
        counters.ticked(now_s, late_s)
        for route in self._routes.by_name.values():
            for line in route.pool.tick(now_s):
                log_event(LOGGER, "endpoint", model=route.name, what=line)
            route.publish(now_s, self._in_flight.admission.waiting(route.name))
        if self._snapshot is not None:
            # Behind what is in flight: who sees this version sees all that was sent before it.
            counters.publish_snapshot(self._snapshot.version)
        self._in_flight.tick(now_s)

    def hear_others(self, counters: SharedCounters, worker: int) -> None:
        """What other workers of this router have in flight, and what tenants used there."""
        self._routes.hear_others(counters, worker)
        self._in_flight.hear_others(counters, worker)

    def tick_slowly(self, now_s: float) -> None:
        """Called about twice a second."""
        for connection in tuple(self.connections):
            connection.check(now_s)
        self._in_flight.tick_slowly(now_s)
        counters = self._context.counters
        if self._ledger is not None:
            self._ledger.tick()
            if line := self._ledger.news():
                log_event(LOGGER, "ledger", logging.WARNING, what=line)
            counters.publish_ledger(self._ledger.records, self._ledger.dropped)
        self._renew_certificates()
        counters.publish(
            connections=len(self.connections), streams=self._in_flight.streams,
            buffered_bytes=self.bodies.nbytes, draining=self.draining,
        )  # fmt: skip

    def _renew_certificates(self) -> None:
        if self._tls is not None and (line := self._tls.renew()):
            log_event(LOGGER, "certificates", what=line)
        for line in self._routes.renew_certificates():
            log_event(LOGGER, "certificates", what=line)

    def exclusions(self) -> dict[str, dict[str, str]]:
        """Model -> endpoint -> why it gets no requests."""
        return self._routes.exclusions()

    def missing(self) -> dict[str, str]:
        """Model -> why none of its endpoints is in service."""
        return self._routes.missing()

    def drain(self) -> None:
        """Take nothing new; connections close after their answers."""
        self.draining = True

    def cut_short(self, why: str) -> None:
        """Answer every request on its way now, with an error that says ``why``."""
        self._in_flight.cut_short(why)

    @property
    def unsent(self) -> bool:
        """Clients have not taken all of their answers yet."""
        return any(one.transport.get_write_buffer_size() for one in self.connections)

    def close(self) -> None:
        """End everything now."""
        for connection in tuple(self.connections):
            connection.transport.abort()
        self._routes.abort()
        if self._ledger is not None:
            self._ledger.close()
        if self._context.tracer is not None:
            self._context.tracer.close()
