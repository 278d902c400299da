"""The connections of a worker to one endpoint."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.types import (
    AttemptOutcome,
)
from trainmesh.serving.identity.describe_tls import handshake_problem
from trainmesh.serving.identity.tls import UpstreamSide
from trainmesh.serving.proxy.upstream.answer import UpstreamRequest
from trainmesh.serving.proxy.upstream.connection import Sink, Upstream

__all__ = ["Server"]

IDLE_S: Final = 30.0
MAX_IDLE: Final = 1024
PROBES: Final = (
    (socket.TCP_KEEPIDLE, 15),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 4),
)
"""A host that is gone is noticed after 35 s."""


class Server:
    """The connections of one worker to one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        loop: asyncio.AbstractEventLoop,
        *,
        connect_timeout_s: float,
        observe_gap: Callable[[float], None],
    ) -> None:
        config = endpoint.config
        parts = urlsplit(config.url)
        self.endpoint = endpoint
        self.url, self.tls_config = config.url, config.tls
        self.host = parts.hostname or ""
        self.side = UpstreamSide(config.tls, self.host) if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.side else 80)
        self.authority = parts.netloc.encode()
        self._loop = loop
        self.observe_gap = observe_gap
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[Upstream] = deque()
        self._busy: set[Upstream] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self.closed = False

    def send(
        self, sink: Sink, attempt: Attempt, request: UpstreamRequest, *, idle_s: float = math.inf
    ) -> Upstream:
        """Send ``request``, over an open connection if there is one; ``sink`` hears of the rest,
        but nothing before this returns. ``idle_s``: over none that has been idle for longer, as
        the endpoint may be about to close it; 0: over a new one."""
        since_s = monotonic() - idle_s
        while self._idle and self._idle[-1].idle_since_s > since_s:
            upstream = self._idle.pop()
            if not upstream.transport.is_closing():
                upstream.send(sink, attempt, request)
                self._busy.add(upstream)
                return upstream
        upstream = Upstream(self)
        upstream.assign(sink, attempt, request)
        self._busy.add(upstream)
        task = self._loop.create_task(self._connect(upstream, request))
        upstream.connecting = task
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return upstream

    async def _connect(self, upstream: Upstream, request: UpstreamRequest) -> None:
        side = self.side
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                transport, _ = await self._loop.create_connection(
                    lambda: upstream, self.host, self.port, ssl=side.context if side else None,
                    server_hostname=side.server_hostname if side else None,
                    ssl_handshake_timeout=self._connect_timeout_s if side else None,
                )  # fmt: skip
            _keep_alive(transport)
            if side and (problem := side.problem(transport.get_extra_info("ssl_object"))):
                raise ssl.SSLError(problem)
        except OSError as error:  # of which TLS errors and time-outs are kinds
            upstream.connecting = None
            upstream.error = _words(error, tls=side is not None)
            upstream.lose(AttemptOutcome.CONNECT)
            return
        upstream.connecting = None
        if upstream.sink is None:
            upstream.close()
        else:
            upstream.write_request(request)

    @property
    def connections(self) -> int:
        """Open ones, and those that are being opened."""
        return len(self._idle) + len(self._busy)

    def free(self, upstream: Upstream) -> None:
        """``upstream`` can take another request."""
        self._busy.discard(upstream)
        if self.closed or len(self._idle) >= MAX_IDLE:
            upstream.close()
        else:
            if not upstream.transport.is_reading():  # a slow client had it paused to the end
                upstream.transport.resume_reading()
            upstream.forget()
            upstream.idle_since_s = monotonic()
            self._idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """``upstream`` is closed."""
        self._busy.discard(upstream)

    def sweep(self, now_s: float) -> None:
        """Close connections that have been idle for long."""
        while self._idle and now_s - self._idle[0].idle_since_s > IDLE_S:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close idle connections now, and the others as soon as they are done."""
        self.closed = True
        while self._idle:
            self._idle.pop().close()

    def abort(self) -> None:
        """Close every connection now."""
        self.close()
        for upstream in tuple(self._busy):
            upstream.drop()


def _words(error: OSError, *, tls: bool) -> str:
    if tls and isinstance(error, ssl.SSLError | TimeoutError):
        return handshake_problem(error)
    return str(error) or "connecting took too long"


def _keep_alive(transport: asyncio.Transport) -> None:
    """Have the kernel find out when the other host is gone: a silent stream has no time-out that
    would."""
    connection = transport.get_extra_info("socket")
    for option, value in PROBES:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
