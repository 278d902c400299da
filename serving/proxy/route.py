"""One model at one worker: its pool, the connections to its endpoints, and its counters."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from trainmesh.serving.adapters import adapter_for, rename_model, upstream_path
from trainmesh.serving.adapters.paths import upstream_name
from trainmesh.serving.config.types import LimitsConfig
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.learn.token_ratio import TokenRatio
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
)
from trainmesh.serving.observe.cells import state_index, status_index
from trainmesh.serving.observe.shared_counters import SharedCounters, WorkerRow
from trainmesh.serving.proxy.answer import UpstreamRequest
from trainmesh.serving.proxy.call import Call
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.reading.api import EMBEDDINGS
from trainmesh.serving.proxy.reading.headers import VIA
from trainmesh.serving.proxy.reading.request_ids import for_endpoint
from trainmesh.serving.proxy.server import Server
from trainmesh.serving.proxy.upstream import Upstream

if TYPE_CHECKING:
    from trainmesh.serving.proxy.exchange import Exchange

__all__ = ["ModelRoute"]


class ModelRoute:
    """What requests for one model share. It stays through reloads, and so do its connections."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, way: ViaChain) -> None:
        self.name = name
        self._way = way
        self._loop = loop
        self._servers: dict[Endpoint, Server] = {}
        self.token_ratio = TokenRatio()
        self._hedges: deque[Exchange] = deque()
        self._hedge_timer: asyncio.TimerHandle | None = None

    def configure(self, pool: Pool, row: WorkerRow, limits: LimitsConfig) -> None:
        """Go on with ``pool``, and count in ``row``.

        Raises:
            ConfigError: the certificates for an endpoint can't be used.
        """
        layout = row.layout
        self.pool = pool
        self._cells, self._reals = row.cells, row.reals
        self._own = layout.models[self.name]
        self._statuses = layout.model_statuses[self.name]
        self._ttft = layout.histograms[self.name, "ttft"]
        self._duration = layout.histograms[self.name, "duration"]
        self._gap = layout.histograms[self.name, "gap"]
        self._queue_wait = layout.histograms[self.name, "queue_wait"]
        self._counters = {e: layout.endpoints[self.name, e.name] for e in pool.endpoints}
        self._at_url = {e: [own] for e, own in self._counters.items()}
        self._adapters = {e: adapter_for(e.config, self.name) for e in pool.endpoints}
        self._keys = {e: _key_field(e.config.api_key_env) for e in pool.endpoints}
        self._session_header = pool.config.session_header.lower().encode()
        self._heads: dict[tuple[Endpoint, bytes], bytes] = {}
        before = self._servers
        self._servers = {e: self._connections(e, before.get(e), limits) for e in pool.endpoints}
        for server in before.values():
            if server not in self._servers.values():
                server.close()

    def _connections(
        self, endpoint: Endpoint, before: Server | None, limits: LimitsConfig
    ) -> Server:
        config = endpoint.config
        if before and (before.url, before.tls_config) == (config.url, config.tls):
            before.observe_gap = self._observe_gap
            return before
        return Server(
            endpoint, self._loop, connect_timeout_s=limits.connect_timeout_s,
            observe_gap=self._observe_gap,
        )  # fmt: skip

    def server(self, endpoint: Endpoint) -> Server:
        """The connections to ``endpoint``."""
        return self._servers[endpoint]

    def session_of(self, call: Call) -> bytes:
        """The value of the session's header field; empty where there is none."""
        wanted = self._session_header
        for name, value in call.fields:
            if len(name) == len(wanted) and name.lower() == wanted:
                return value
        return b""

    def request(
        self, endpoint: Endpoint, call: Call, request_id: str, traceparent: bytes
    ) -> UpstreamRequest:
        """The bytes of ``call`` for ``endpoint``.

        Raises:
            Unsupported: its runtime can't do what is asked.
        """
        adapter = self._adapters[endpoint]
        body, target, inbound = call.body, call.target, None
        fields = call.passed_fields()
        if adapter is not None:
            sent = adapter.outbound(call.path, body)
            body, target = sent.body, sent.path
            inbound = adapter.inbound(sent, request_id=request_id, created_s=int(time.time()))
            fields = [(b"content-type", sent.content_type)]
        else:
            name = upstream_name(endpoint.config, self.name)
            if name != call.model and not call.adapter:
                body = rename_model(body, name)
        head = [
            self._heads.get((endpoint, target)) or self._head(endpoint, call, target),
            self._keys[endpoint] or call.passed_key,
            *[b"%s: %s\r\n" % pair for pair in fields],
            b"x-request-id: %s\r\n" % for_endpoint(call, request_id),
            b"traceparent: %s\r\n" % traceparent if traceparent else b"",
            self._way.field(call.special.get(VIA)),
            b"content-length: %d\r\n\r\n" % len(body),
        ]
        generates = call.path != EMBEDDINGS
        return UpstreamRequest(
            b"".join(head), body, inbound, decode=call.http10, generates=generates
        )

    def _head(self, endpoint: Endpoint, call: Call, target: bytes) -> bytes:
        """The first lines; ``target`` may have a query."""
        path = target
        if self._adapters[endpoint] is None:
            path = upstream_path(endpoint.config, call.path, self.name) + call.query
        authority = self._servers[endpoint].authority
        head = b"POST %s HTTP/1.1\r\nhost: %s\r\n" % (path, authority)
        if len(self._heads) < 1024:
            self._heads[endpoint, target] = head
        return head

    # -- counters --------------------------------------------------------------------------

    def count(self, field: str, amount: int = 1) -> None:
        """Add to a counter of the model."""
        self._cells[getattr(self._own, field)] += amount

    def _observe_gap(self, seconds: float) -> None:
        self._gap.observe(self._cells, self._reals, seconds)

    def began(self, attempt: Attempt) -> None:
        """An attempt is made."""
        cells, own = self._cells, self._counters.get(attempt.endpoint)
        if own is None:
            return
        cells[own.attempts] += 1
        cells[own.prompt_tokens] += attempt.prompt_tokens
        if attempt.kind is AttemptKind.RETRY:
            cells[own.retries] += 1
        elif attempt.kind is AttemptKind.HEDGE:
            cells[own.hedges] += 1
        elif attempt.kind is AttemptKind.TRIAL:
            cells[own.trials] += 1

    def first_byte(self, exchange: Exchange, attempt: Attempt, now_s: float) -> None:
        """The body of an attempt's good answer has begun, and the attempt has won."""
        self.pool.first_byte(attempt, now_s)
        cells, reals = self._cells, self._reals
        self._ttft.observe(cells, reals, now_s - exchange.started_s)
        own = self._counters.get(attempt.endpoint)
        if own is not None:
            cells[own.ttft_count] += 1
            reals[own.ttft_s] += now_s - attempt.started_s
            if attempt.kind is AttemptKind.HEDGE:
                cells[own.hedge_wins] += 1
                cells[self._own.hedge_wins] += 1

    def ended(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        """An attempt is over."""
        attempt = upstream.attempt
        output_tokens = upstream.output_tokens() if outcome is AttemptOutcome.OK else 0
        self.pool.end(attempt, outcome, now_s, output_tokens, upstream.answer.retry_after_s)
        cells, own = self._cells, self._counters.get(attempt.endpoint)
        if own is None:
            return  # a reload has removed it
        cells[own.outcome(outcome)] += 1
        cells[own.received_bytes] += upstream.nbytes
        cells[own.sent_bytes] += len(upstream.request.body)
        cells[own.output_tokens] += output_tokens

    def finished(self, status: int, duration_s: float) -> None:
        """A request is over."""
        self._cells[self._statuses + status_index(status)] += 1
        self._duration.observe(self._cells, self._reals, duration_s)

    def waited(self, seconds: float) -> None:
        """A request has left the queue."""
        self._queue_wait.observe(self._cells, self._reals, seconds)

    def publish(self, now_s: float, queued: int) -> None:
        """Write what is true now to the counters file, and close what has been idle for long.

        Args:
            now_s: monotonic seconds.
            queued: requests for the model that wait.
        """
        cells, reals = self._cells, self._reals
        cells[self._own.queued] = queued
        cells[self._own.inflight] = self.pool.inflight
        for endpoint, own in self._counters.items():
            server = self._servers[endpoint]
            cells[own.inflight] = endpoint.own_inflight
            cells[own.inflight_tokens] = endpoint.own_tokens
            cells[own.waiting_tokens] = endpoint.own_waiting_tokens
            cells[own.connections] = server.connections
            cells[own.state] = state_index(endpoint.health.state)
            reals[own.base_s] = endpoint.base_s
            reals[own.s_per_token] = endpoint.s_per_token
            server.sweep(now_s)

        self._publish_versus()

    def _publish_versus(self) -> None:
        cells, reals, own, versus = self._cells, self._reals, self._own, self.pool.versus
        cells[own.shadow_compared] = versus.compared
        cells[own.shadow_same] = versus.same
        cells[own.shadow_wins] = versus.wins
        cells[own.shadow_losses] = versus.losses
        cells[own.base_requests], cells[own.arm_requests] = versus.answered
        reals[own.base_ttft_s], reals[own.arm_ttft_s] = versus.ttft_sums_s

    def share(self, routes: Iterable[ModelRoute]) -> None:
        """Count what other workers have in flight at an endpoint's URL for any of ``routes``."""
        cells = {e: own for route in routes for e, own in route._counters.items()}
        self._at_url = {e: [cells[one] for one in (e, *e.twins)] for e in self._counters}

    def hear_others(self, counters: SharedCounters, worker: int) -> None:
        """Take over what other workers have in flight."""
        others = counters.others
        for endpoint, cells in self._at_url.items():
            endpoint.set_others(
                sum([others(each.inflight, worker) for each in cells]),
                sum([others(each.inflight_tokens, worker) for each in cells]),
                sum([others(each.waiting_tokens, worker) for each in cells]),
            )

    def renew_certificates(self) -> list[str]:
        """Look at the files of certificates again; what was new, or wrong."""
        sides = [server.side for server in self._servers.values() if server.side is not None]
        return [line for side in sides if (line := side.renew())]

    # -- hedges ----------------------------------------------------------------------------

    def expect_hedge(self, exchange: Exchange) -> None:
        """Hedge ``exchange`` at its time if it has no answer by then."""
        self._hedges.append(exchange)
        if self._hedge_timer is None:
            self._hedge_timer = self._loop.call_at(exchange.hedge_at_s, self._hedge_due)

    def _hedge_due(self) -> None:
        # Exchanges come in the order of their starts; their delays change slowly, so a few are
        # hedged some milliseconds late, and none is looked at twice.
        self._hedge_timer = None
        now_s = time.monotonic()
        hedges = self._hedges
        while hedges:
            exchange = hedges[0]
            if exchange.winner is None and exchange.client is not None:
                if exchange.hedge_at_s > now_s:
                    self._hedge_timer = self._loop.call_at(exchange.hedge_at_s, self._hedge_due)
                    return
                exchange.hedge(now_s)
            hedges.popleft()

    def close(self) -> None:
        """No new request comes; those on their way end."""
        if self._hedge_timer is not None:
            self._hedge_timer.cancel()
            self._hedge_timer = None
        for server in self._servers.values():
            server.close()

    def abort(self) -> None:
        """End everything now."""
        self.close()
        for server in self._servers.values():
            server.abort()


def _key_field(variable: str) -> bytes:
    if not variable:
        return b""
    return b"authorization: Bearer %s\r\n" % os.environ.get(variable, "").encode()
