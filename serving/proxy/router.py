"""What all connections of a worker share: models, tenants, limits, counters and the ledger."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import ssl
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final, cast

from trainmesh.errors import WireError
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.control.worker_config import WorkerConfig
from trainmesh.serving.decide.admission.admission import Admission, Queued, Ticket
from trainmesh.serving.decide.admission.admission import Refused as Full
from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import RequestFacts
from trainmesh.serving.identity.access import Access
from trainmesh.serving.identity.authenticator import Authenticator, Tenant
from trainmesh.serving.identity.refused import Refused
from trainmesh.serving.identity.tls import ServerTls
from trainmesh.serving.ledger.writer import LedgerWriter
from trainmesh.serving.observe.cells import status_index
from trainmesh.serving.observe.log import ACCESS, LOGGER, log_event
from trainmesh.serving.observe.shared_counters import SharedCounters, WorkerRow
from trainmesh.serving.observe.trace import Tracer
from trainmesh.serving.proxy.exchange import Exchange, NoRoom, TrialRequest
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.open_files import connections_that_fit
from trainmesh.serving.proxy.reading.api import (
    EMBEDDINGS,
    POST_PATHS,
    check_coding,
    parse_body,
    prefix_blocks,
    split_target,
)
from trainmesh.serving.proxy.reading.headers import (
    API_KEY,
    AUTHORIZATION,
    CONTENT_ENCODING,
    ORIGIN,
    TRACEPARENT,
    VIA,
)
from trainmesh.serving.proxy.reading.request_ids import RequestIds
from trainmesh.serving.proxy.recorder import Recorder
from trainmesh.serving.proxy.replies.answers import Refusal
from trainmesh.serving.proxy.replies.catalogue import Catalogue
from trainmesh.serving.proxy.replies.cors import Cors, check_origin
from trainmesh.serving.proxy.replies.local import (
    health_answer,
    is_health_path,
    models_answer,
    unknown_path,
)
from trainmesh.serving.proxy.route import ModelRoute
from trainmesh.serving.proxy.upstream import Upstream

if TYPE_CHECKING:
    from trainmesh.serving.proxy.call import Call
    from trainmesh.serving.proxy.client import ClientConnection

__all__ = ["Router"]

MAX_LOGGED: Final = 256
"""Characters of a path or model that a client made up."""


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
        self.loop = loop
        self.connections: set[ClientConnection] = set()
        self.trials: set[TrialRequest] = set()
        self.buffered_bytes = 0
        self.draining = False
        self._worker = worker
        self._most_connections = connections_that_fit()
        self._way = way
        self._exchanges: set[Exchange] = set()
        self._ids = RequestIds()
        self._cors: Cors | None = None
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 - no secret
        self._routes: dict[str, ModelRoute] = {}
        self._snapshot: Snapshot | None = None
        config = worker_config.config
        self._admission = Admission(config, {}, now_s=monotonic())
        self._tls = ServerTls(config.tls) if config.tls is not None else None
        telemetry = config.telemetry
        self._tracer = Tracer(telemetry, f"worker-{worker}") if telemetry.otlp else None
        self._ledger: LedgerWriter | None = None
        if config.ledger.enabled:
            self._ledger = LedgerWriter(Path(config.ledger.dir), worker, config.ledger)
        self.recorder = Recorder(self._ledger)
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
        scorers, problems = load_scorers()
        for problem in problems:
            log_event(LOGGER, "plug_in", reason=problem)
        routes: dict[str, ModelRoute] = {}
        old_pools = [route.pool for route in self._routes.values()]
        for name, model in config.models.items():
            route = self._routes.get(name) or ModelRoute(name, self.loop, self._way)
            previous = route.pool if name in self._routes else None
            pool = Pool(
                name, model, limits=config.limits, scorers=scorers, rng=self._random,
                previous=previous, now_s=now_s,
            )  # fmt: skip
            route.configure(pool, row, config.limits)
            routes[name] = route
        for name, route in self._routes.items():
            if name not in routes:
                route.close()
        Pool.share([route.pool for route in routes.values()], old_pools)
        for route in routes.values():
            route.share(routes.values())
        self.config = config
        self._routes = routes
        self._catalogue = Catalogue(routes)
        self._cors = Cors(config.cors) if config.cors is not None else None
        self._authenticator = Authenticator(config)
        self._access = Access(config)
        self._open = not config.tenants and config.jwt is None
        self._row, self._cells, self._reals = row, row.cells, row.reals
        self._own = row.layout.worker
        self._statuses = row.layout.statuses
        self._admission = Admission(
            config, {name: route.pool for name, route in routes.items()}, now_s=now_s,
            previous=self._admission,
        )  # fmt: skip
        self.hear_keys(worker_config)
        if self._snapshot is not None:
            self.take(self._snapshot, now_s)

    def hear_keys(self, worker_config: WorkerConfig) -> None:
        """The token issuer's keys may be new."""
        if worker_config.jwks:
            try:
                self._authenticator.set_keys(worker_config.jwks.encode())
            except WireError as error:
                log_event(LOGGER, "keys_refused", reason=str(error))

    def take(self, snapshot: Snapshot, now_s: float) -> None:
        """Decide with ``snapshot`` from now on."""
        self._snapshot = snapshot
        self.recorder.version = snapshot.version
        self._catalogue.hear(snapshot.listings)
        for name, route in self._routes.items():
            signals = {signal.name: signal for signal in snapshot.signals.get(name, ())}
            route.pool.update(signals, now_s)
            if snapshot.demand.get(name, 0.0) >= 1:
                route.pool.demand.unmet()

    # -- requests --------------------------------------------------------------------------

    def accepts(self, connection: ClientConnection) -> bool:
        """Whether there is room for another connection."""
        most = min(self.config.limits.connections, self._most_connections)
        if len(self.connections) >= most or self.draining:
            self._cells[self._own.refused_connections] += 1
            return False
        self.connections.add(connection)
        self._cells[self._own.accepted] += 1
        return True

    def identify(self, call: Call, names: tuple[str, ...]) -> Tenant | None:
        """Who sends ``call``; None where that does not matter.

        Raises:
            Refusal: nobody who may.
        """
        if is_health_path(call.target) or self._is_preflight(call):
            return None
        special = call.special
        authorization, key = special.get(AUTHORIZATION), special.get(API_KEY)
        shown = authorization
        if shown is None and key is not None:
            shown = b"Bearer " + key  # as Azure's clients show it
        found = self._authenticator.identify(shown, names)
        if isinstance(found, Refused):
            raise Refusal(found.status, found.message, code=found.code)
        if self._open:
            check_origin(special.get(ORIGIN), self._cors)
            if authorization is not None:
                call.passed_key = b"authorization: %s\r\n" % authorization
            if key is not None:
                call.passed_key += b"api-key: %s\r\n" % key
        return found

    def _is_preflight(self, call: Call) -> bool:
        return self._cors is not None and self._cors.is_preflight(call)

    def own_fields(self, call: Call, endpoint: str = "") -> bytes:
        """Our own header fields of every answer.

        Args:
            call: what is answered.
            endpoint: the name of the one that answers, or was asked last.
        """
        fields = self._ids.fields(call)
        if endpoint:
            fields += b"x-trainmesh-endpoint: %s\r\n" % endpoint.encode()
        if self._cors is not None:
            fields += self._cors.fields(call)
        return fields

    def open(self, client: ClientConnection, call: Call) -> bytes | None:
        """Begin to answer ``call``: at once with what is returned, or later through ``client``.

        Raises:
            Refusal: it is not served.
        """
        call.path, call.query = split_target(call.target)
        if self._cors is not None and self._cors.is_preflight(call):
            answer = self._cors.preflight(call, self.own_fields(call))
            return self._answered_here(call, answer)
        if call.path not in POST_PATHS:
            return self._answered_here(call, self._local(call))
        if call.method != b"POST":
            raise Refusal(
                405,
                f"{call.path.decode()} wants POST",
                code="method_not_allowed",
                fields=b"allow: POST\r\n",
            )
        check_coding(call.special.get(CONTENT_ENCODING))
        self._way.check(call.special.get(VIA))
        exchange = self._exchange(client, call)
        now_s = monotonic()
        facts = exchange.facts
        route = exchange.route
        cells = self._cells
        ticket = Ticket(facts, exchange)
        verdict = self._admission.offer(ticket, now_s)
        tenant_cells = self._row.layout.tenant(facts.tenant)
        cells[tenant_cells.requests] += 1
        route.count("requests")
        if isinstance(verdict, Full):
            route.count("refused")
            route.pool.demand.unmet()
            cells[tenant_cells.refused] += 1
            raise Refusal(
                verdict.status, verdict.reason, code="overloaded",
                retry_after_s=verdict.retry_after_s,
            )  # fmt: skip
        cells[tenant_cells.prompt_tokens] += facts.prompt_tokens
        cells[tenant_cells.inflight] += 1
        self._exchanges.add(exchange)
        client.serve(exchange)
        if isinstance(verdict, Queued):
            route.count("queued_total")
            route.pool.demand.unmet()
        else:
            self._begin(exchange, ticket, now_s)
        return None

    def _exchange(self, client: ClientConnection, call: Call) -> Exchange:
        body = parse_body(call.body)
        call.model = body.model
        tenant = call.tenant
        found = self._catalogue.find(body.model) if body.model else self._only_route(tenant)
        route, holders = found or (None, None)
        if route is None or tenant is None or not self._access.may_see(tenant.name, route.name):
            raise Refusal(
                404, f"the model {body.model!r:.200} does not exist; see /v1/models",
                code="model_not_found", param="model",
            )  # fmt: skip
        call.adapter = holders is not None
        prompt = body.prompt
        output_tokens = body.output_tokens or route.pool.expected_output_tokens()
        session = route.session_of(call) or body.prompt_cache_key.encode("utf-8", "replace")
        facts = RequestFacts(
            request_id=self._ids.name(call),
            client_id=call.given_id,
            model=route.name,
            tenant=tenant.name,
            priority=tenant.config.priority,
            stream=body.stream,
            nbytes=len(call.body),
            prompt_tokens=route.token_ratio.tokens(prompt.text, prompt.media, prompt.exact),
            output_tokens=0 if call.path == EMBEDDINGS else output_tokens,
            session=session,
            blocks=prefix_blocks(body.model if call.adapter else route.name, prompt.head),
        )  # fmt: skip
        grant = self._access.grant(tenant.name, route.name)
        if isinstance(grant, Refused):
            raise Refusal(grant.status, grant.message, code=grant.code)
        allowed = grant.allowed
        if grant.depends:
            allowed, reasons = grant.narrow(facts)
            if allowed is not None and not allowed:
                refused = grant.none_allowed(reasons)
                raise Refusal(refused.status, refused.message, code=refused.code)
        if holders is not None:
            allowed = holders if allowed is None else allowed & holders
        exchange = Exchange(self, route, client, call, facts, allowed)
        exchange.estimates = prompt.text, prompt.media, prompt.exact
        if self._tracer is not None:
            name = f"POST {call.path.decode()}"
            trace = exchange.trace = self._tracer.begin(call.special.get(TRACEPARENT), name)
            if trace is not None:
                trace.set(gen_ai__request__model=facts.model, trainmesh__tenant=facts.tenant,
                          trainmesh__request_id=facts.request_id)  # fmt: skip
        return exchange

    def _only_route(self, tenant: Tenant | None) -> tuple[ModelRoute, None]:
        """Of a request that names no model.

        Raises:
            Refusal: there is more than one.
        """
        name = tenant.name if tenant is not None else ""
        seen = [route for route in self._routes.values() if self._access.may_see(name, route.name)]
        if len(seen) == 1:
            return seen[0], None
        raise Refusal(
            400, "the body names no model; see /v1/models", code="invalid_value", param="model"
        )

    def _start(self, ticket: Ticket, now_s: float) -> None:
        """Send a request that has waited."""
        exchange = cast(Exchange, ticket.owner)
        waited_s = now_s - ticket.queued_at_s
        if self._begin(exchange, ticket, now_s):
            exchange.route.waited(waited_s)

    def _begin(self, exchange: Exchange, ticket: Ticket, now_s: float) -> bool:
        """Send a request that was let in; False if it has to wait after all."""
        try:
            exchange.start(now_s)
        except NoRoom:
            exchange.route.pool.demand.unmet()
            self._admission.put_back(ticket, now_s)
            return False
        except Refusal as refusal:
            exchange.refuse(refusal, now_s)
        return True

    def choose(self, exchange: Exchange, now_s: float) -> RoutingChoice:
        """Ask the pool, and see how long it takes."""
        begun_s = perf_counter()
        choice = exchange.route.pool.choose(
            exchange.facts, now_s, tried=exchange.tried, allowed=exchange.allowed
        )
        took_s = perf_counter() - begun_s
        cells, reals = self._cells, self._reals
        cells[self._own.decisions] += 1
        reals[self._own.decision_s] += took_s
        if took_s > self.config.limits.decision_s:
            cells[self._own.slow_decisions] += 1
        return choice

    def refused(self, call: Call, refusal: Refusal) -> None:
        """A request was answered with an error of ours; ``call`` is what was read of it."""
        self._cells[self._statuses + status_index(refusal.status)] += 1
        if not call.received_s:
            self._cells[self._own.bad_requests] += 1
        self._log_access(call, refusal.status, monotonic())

    def _answered_here(self, call: Call, answer: bytes) -> bytes:
        """A request gets ``answer``, which no endpoint was asked for."""
        self._log_access(call, int(answer[9:12]), monotonic())  # behind "HTTP/1.1 "
        return answer

    def ended(self, exchange: Exchange, status: int, now_s: float) -> None:
        """A request is over; others may take its place."""
        self._exchanges.discard(exchange)
        self.release(exchange.call)
        winner = exchange.winner
        tokens = winner.output_tokens() if winner is not None else 0
        prompt_tokens = self._counted(exchange, winner) if winner is not None else 0
        cells, tenant = self._cells, self._row.layout.tenant(exchange.facts.tenant)
        cells[tenant.inflight] -= 1
        cells[tenant.output_tokens] += tokens
        cells[self._statuses + status_index(status)] += 1
        exchange.route.finished(status, now_s - exchange.started_s)
        if exchange.trace is not None:
            exchange.trace.end(status)
        endpoint = winner.attempt.endpoint.name if winner is not None else ""
        self._log_access(exchange.call, status, now_s, exchange.route.name, endpoint)
        for ticket in self._admission.release(
            exchange, now_s, tokens or None, prompt_tokens or None
        ):
            self._start(ticket, now_s)

    def _counted(self, exchange: Exchange, winner: Upstream) -> int:
        """The tokens of the prompt as the endpoint counts them, to learn from; 0: unknown."""
        tokens = winner.usage.prompt_tokens
        if tokens:
            text, media, exact = exchange.estimates
            exchange.route.token_ratio.counted(text, media, exact, tokens)
        return tokens

    def _log_access(
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

    def release(self, call: Call) -> None:
        """The body of ``call`` is not needed any more."""
        if not call.size:
            return
        self.buffered_bytes -= call.size
        call.size = 0
        call.body = b""
        call.parts = []

    # -- what is answered here -------------------------------------------------------------

    def _local(self, call: Call) -> bytes:
        if is_health_path(call.path):
            head = self.own_fields(call)
            return health_answer(call, self.missing(), len(self._routes), head)
        if call.path == b"/v1/models" or call.path.startswith(b"/v1/models/"):
            tenant = call.tenant.name if call.tenant is not None else ""
            see = self._access.may_see
            cards = self._catalogue.cards(lambda model: see(tenant, model))
            return models_answer(call, cards, self.own_fields(call))
        raise unknown_path(call)

    # -- time ------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """Requests on their way."""
        return len(self._exchanges)

    def tick(self, now_s: float, late_s: float) -> None:
        """Called every 50 ms."""
        reals, own = self._reals, self._own
        reals[own.alive_at_s] = now_s
        reals[own.loop_lag_s] = late_s
        for route in self._routes.values():
            for line in route.pool.tick(now_s):
                log_event(LOGGER, "endpoint", model=route.name, what=line)
            route.publish(now_s, self._admission.waiting(route.name))
        if self._snapshot is not None:
            # Behind what is in flight: who sees this version sees all that was sent before it.
            self._cells[own.snapshot] = self._snapshot.version
        for ticket, full in self._admission.expire(now_s):
            cast(Exchange, ticket.owner).refuse(
                Refusal(full.status, full.reason, code="overloaded",
                        retry_after_s=full.retry_after_s), now_s,
            )  # fmt: skip
        for ticket in self._admission.ready(now_s):
            self._start(ticket, now_s)

    def hear_others(self, counters: SharedCounters, worker: int) -> None:
        """What other workers of this router have in flight, and what tenants used there."""
        for route in self._routes.values():
            route.hear_others(counters, worker)
        for name, cells in counters.layout.tenants.items():
            tokens = cells.prompt_tokens, cells.output_tokens
            self._admission.hear_others(
                name,
                counters.others(cells.requests, worker),
                sum(counters.others(cell, worker) for cell in tokens),
                counters.others(cells.inflight, worker),
            )

    def tick_slowly(self, now_s: float) -> None:
        """Called about twice a second."""
        for connection in tuple(self.connections):
            connection.check(now_s)
        for trial in tuple(self.trials):
            trial.check(now_s)
        if self._ledger is not None:
            self._ledger.tick()
            if line := self._ledger.news():
                log_event(LOGGER, "ledger", logging.WARNING, what=line)
        if self._tls is not None and (line := self._tls.renew()):
            log_event(LOGGER, "certificates", what=line)
        for route in self._routes.values():
            for line in route.renew_certificates():
                log_event(LOGGER, "certificates", what=line)
        self._publish()

    def _publish(self) -> None:
        cells, own = self._cells, self._own
        cells[own.connections] = len(self.connections)
        cells[own.streams] = sum(exchange.winner is not None for exchange in self._exchanges)
        cells[own.buffered_bytes] = self.buffered_bytes
        cells[own.draining] = self.draining
        if self._ledger is not None:
            cells[own.ledger_records] = self._ledger.records
            cells[own.ledger_dropped] = self._ledger.dropped

    def exclusions(self) -> dict[str, dict[str, str]]:
        """Model -> endpoint -> why it gets no requests."""
        return {name: dict(route.pool.exclusions()) for name, route in self._routes.items()}

    def missing(self) -> dict[str, str]:
        """Model -> why none of its endpoints is in service."""
        return {name: why for name, route in self._routes.items() if (why := route.pool.why_out())}

    def drain(self) -> None:
        """Take nothing new; connections close after their answers."""
        self.draining = True

    def cut_short(self, why: str) -> None:
        """Answer every request on its way now, with an error that says ``why``."""
        now_s = monotonic()
        # Those that wait first: they would be sent to the places that the others leave.
        for exchange in sorted(self._exchanges, key=lambda one: not one.waits):
            exchange.cut_short(why, now_s)

    @property
    def unsent(self) -> bool:
        """Clients have not taken all of their answers yet."""
        return any(one.transport.get_write_buffer_size() for one in self.connections)

    def close(self) -> None:
        """End everything now."""
        for connection in tuple(self.connections):
            connection.transport.abort()
        for route in self._routes.values():
            route.abort()
        if self._ledger is not None:
            self._ledger.close()
        if self._tracer is not None:
            self._tracer.close()
