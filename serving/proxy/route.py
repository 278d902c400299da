"""One model at one worker: its pool, the connections to its endpoints, and its counters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from trainmesh.serving.config.types import LimitsConfig
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.learn.token_ratio import TokenRatio
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import AttemptOutcome
from trainmesh.serving.observe.shared_counters import WorkerRow
from trainmesh.serving.proxy.counters import ModelCounters
from trainmesh.serving.proxy.exchange.hedges import HedgeTimer
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.reading.call import Call
from trainmesh.serving.proxy.upstream.connection import Upstream
from trainmesh.serving.proxy.upstream.requests import RequestWriter
from trainmesh.serving.proxy.upstream.server import Server

__all__ = ["ModelRoute"]


class ModelRoute:
    """What requests for one model share. It stays through reloads, and so do its connections.

    Args:
        pool: of the model, which has its name.
        row: where to count.
        limits: of serve.yaml.
        loop: what it runs in.
        way: of this router.

    Raises:
        ConfigError: the certificates for an endpoint can't be used.
    """

    def __init__(
        self,
        pool: Pool,
        row: WorkerRow,
        limits: LimitsConfig,
        loop: asyncio.AbstractEventLoop,
        way: ViaChain,
    ) -> None:
        self.name = pool.name
        self._way = way
        self._loop = loop
        self.token_ratio = TokenRatio()
        self.hedges = HedgeTimer(loop)
        self.pool = pool
        self.counters = ModelCounters(row, self.name, pool.endpoints)
        self._session_header = _session_header(pool)
        self._servers = self._connect(pool.endpoints, limits, {})
        self.writer = self._write_to(pool.endpoints)
        """Of requests to its endpoints."""

    def configure(self, pool: Pool, row: WorkerRow, limits: LimitsConfig) -> None:
        """Go on with ``pool``, and count in ``row``.

        Raises:
            ConfigError: the certificates for an endpoint can't be used.
        """
        self.pool = pool
        self.counters = ModelCounters(row, self.name, pool.endpoints)
        self._session_header = _session_header(pool)
        before = self._servers
        self._servers = self._connect(pool.endpoints, limits, before)
        self.writer = self._write_to(pool.endpoints)
        for server in before.values():
            if server not in self._servers.values():
                server.close()

    def _connect(
        self,
        endpoints: Sequence[Endpoint],
        limits: LimitsConfig,
        before: dict[Endpoint, Server],
    ) -> dict[Endpoint, Server]:
        """Connections to ``endpoints``: those of ``before`` where they lead to the same place."""
        servers: dict[Endpoint, Server] = {}
        for endpoint in endpoints:
            config, server = endpoint.config, before.get(endpoint)
            if server is None or (server.url, server.tls_config) != (config.url, config.tls):
                server = Server(
                    endpoint, self._loop, connect_timeout_s=limits.connect_timeout_s,
                    observe_gap=self.counters.observe_gap,
                )  # fmt: skip
            server.observe_gap = self.counters.observe_gap
            servers[endpoint] = server
        return servers

    def _write_to(self, endpoints: Sequence[Endpoint]) -> RequestWriter:
        authorities = {e: server.authority for e, server in self._servers.items()}
        return RequestWriter(self.name, endpoints, authorities, self._way)

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

    def first_byte(self, attempt: Attempt, request_started_s: float, now_s: float) -> None:
        """The body of an attempt's good answer has begun, and the attempt has won."""
        self.pool.first_byte(attempt, now_s)
        self.counters.first_byte(attempt, request_started_s, now_s)

    def ended(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        """An attempt is over."""
        attempt = upstream.attempt
        output_tokens = upstream.output_tokens() if outcome is AttemptOutcome.OK else 0
        self.pool.end(attempt, outcome, now_s, output_tokens, upstream.answer.retry_after_s)
        sent_bytes = len(upstream.request.body)
        self.counters.ended(attempt, outcome, sent_bytes, upstream.nbytes, output_tokens)

    def publish(self, now_s: float, queued: int) -> None:
        """Write what is true now to the counters file, and close what has been idle for long.

        Args:
            now_s: monotonic seconds.
            queued: requests for the model that wait.
        """
        self.counters.publish(self.pool.inflight, queued, self.pool.versus)
        for endpoint, server in self._servers.items():
            self.counters.publish_endpoint(endpoint, server.connections)
            server.sweep(now_s)

    def renew_certificates(self) -> list[str]:
        """Look at the files of certificates again; what was new, or wrong."""
        sides = [server.side for server in self._servers.values() if server.side is not None]
        return [line for side in sides if (line := side.renew())]

    def close(self) -> None:
        """No new request comes; those on their way end."""
        self.hedges.close()
        for server in self._servers.values():
            server.close()

    def abort(self) -> None:
        """End everything now."""
        self.close()
        for server in self._servers.values():
            server.abort()


def _session_header(pool: Pool) -> bytes:
    return pool.config.session_header.lower().encode()
