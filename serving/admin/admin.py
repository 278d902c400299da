"""The admin server: the router's state, its metrics, and admins' orders for endpoints.

::

    GET  /health                     200 while the control process runs
    GET  /ready                      200 when requests can be served, else 503 and why
    GET  /metrics                    Prometheus
    GET  /endpoints                  Overview (JSON)
    GET  /why/ID                     the ledger's records of one request (JSON lines)
    POST /endpoints/NAME/cordon      no new requests
    POST /endpoints/NAME/drain       the same; answers when nothing is in flight any more, or
                                     after limits.drain_s (?wait_s=SECONDS: after that time)
    POST /endpoints/NAME/uncordon    takes either back

On loopback, where it listens unless told otherwise, reading needs no key; POST and /why need one
(``Control.authorize``), and a ``Host`` other than a loopback name is refused, so that no web page
can reach it by DNS rebinding. Beyond loopback only /health, /ready and /metrics need no key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.serving.admin.metrics import CONTENT_TYPE, Metrics
from trainmesh.serving.admin.overview import overview
from trainmesh.serving.cluster.cordons import CordonState
from trainmesh.serving.config.addresses import parse_listener
from trainmesh.serving.config.types import Config
from trainmesh.serving.control.rundir import RouterInfo, WorkerWords
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.ledger.reader import find_lines
from trainmesh.serving.observe.shared_counters import SharedCounters
from trainmesh.serving.refusal import Refusal

__all__ = ["AdminServer", "Control"]

MAX_BODY_BYTES = 4096
MAX_ID_BYTES = 256
DRAIN_POLL_S = 0.05
MAX_WAIT_S = 86_400.0
WORKER_ALIVE_S = 2.0
"""A worker that has given no sign of life for that long doesn't delay a drain; it ticks 20 times a
second."""
WORDS = {"cordon": CordonState.CORDON, "drain": CordonState.DRAIN, "uncordon": CordonState.OPEN}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
JSON = "application/json"


class Control(Protocol):
    """What the admin server asks of the control process."""

    @property
    def config(self) -> Config: ...
    @property
    def info(self) -> RouterInfo: ...
    @property
    def counters(self) -> SharedCounters: ...
    @property
    def snapshot(self) -> Snapshot | None: ...
    @property
    def ledger(self) -> Path | None:
        """Folder of the ledger; None if none is kept."""
        ...

    def words(self) -> Sequence[WorkerWords]:
        """What each worker said last."""
        ...

    def not_ready(self) -> str:
        """Why no requests can be served now; empty if they can."""
        ...

    def authorize(self, authorization: str, remote: str) -> str | Refusal:
        """The admin who sends this ``Authorization`` header; audits refusals."""
        ...

    async def cordon(self, endpoint: str, state: CordonState, by: str) -> None:
        """Carry an admin's order out. ``endpoint`` is one of the config's."""
        ...

    def audit(self, by: str, action: str, subject: str, remote: str, result: str) -> None:
        """Write down what an admin is about to do.

        Raises:
            OSError: it can't be written, so it must not be done.
        """
        ...


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """The admin server of one router: ``start`` it, ``close`` it."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._metrics = Metrics(lambda: control.counters, lambda: control.snapshot)
        self._runner: web.AppRunner | None = None
        self._on_loopback = True

    async def start(self) -> str:
        """Listen on ``config.admin``; returns the base URL.

        Raises:
            ConfigError: the address can't be listened on.
        """
        listener = parse_listener(self._control.config.admin)
        host, port = listener.host, listener.port
        self._on_loopback = listener.loopback
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.add_routes(
            [
                *(web.get(path, self._health) for path in ("/health", "/healthz", "/livez")),
                *(web.get(path, self._ready) for path in ("/ready", "/readyz")),
                web.get("/metrics", self._page),
                web.get("/endpoints", self._endpoints),
                web.get("/why/{id:.+}", self._why),
                # Names may have slashes.
                web.post(r"/endpoints/{name:.+}/{word:cordon|drain|uncordon}", self._cordon),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await self.close()
            raise ConfigError(f"admin: can't listen on {host}:{port}: {error.strerror}") from error
        bound = self._runner.addresses[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}"

    async def close(self) -> None:
        """Stop listening and end what is being answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Checks Host; turns errors into one line of JSON; sets the security headers."""
        try:
            if self._on_loopback and not _is_loopback(_hostname(request.host)):
                raise web.HTTPForbidden(reason="Host is not a loopback name")
            response = await handler(request)
        except web.HTTPException as error:
            response = _error(error.status, error.reason)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except TrainmeshError as error:
            response = _error(400, str(error))
        except OSError as error:
            response = _error(503, f"the audit log can't be written: {error.strerror}")
        response.headers.update(HEADERS)
        return response

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        problem = self._control.not_ready()
        return web.Response(text=f"{problem or 'ready'}\n", status=503 if problem else 200)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def _endpoints(self, request: web.Request) -> web.Response:
        control = self._control
        if not self._on_loopback and isinstance(who := self._authorize(request), Refusal):
            return _refusal(who)
        if control.snapshot is None:
            return _error(503, "the router is starting")
        view = overview(
            control.info,
            control.config,
            control.snapshot,
            control.counters,
            control.words(),
            time.monotonic(),
        )
        return web.Response(body=msgspec.json.encode(view), content_type=JSON)

    async def _why(self, request: web.Request) -> web.Response:
        """The answer has prompts' sizes and tenants' names, which are not for everybody, so it
        needs a key."""
        who = self._authorize(request)
        if isinstance(who, Refusal):
            return _refusal(who)
        if self._control.ledger is None:
            return _error(404, "no ledger is kept: ledger.enabled is false")
        request_id = request.match_info["id"][:MAX_ID_BYTES]
        lines = await asyncio.to_thread(find_lines, self._control.ledger, request_id)
        if not lines:
            return _error(404, "the ledger has no such request")
        return web.Response(body=b"\n".join(lines) + b"\n", content_type="application/jsonl")

    async def _cordon(self, request: web.Request) -> web.Response:
        name, word = request.match_info["name"], request.match_info["word"]
        wait_s = self._wait_s(request)
        who = self._authorize(request)
        if isinstance(who, Refusal):
            return _refusal(who)
        if not any(name == endpoint for _, endpoint in self._control.counters.layout.endpoints):
            return _error(404, f"no endpoint is called {name!r}")
        self._control.audit(who, word, name, request.remote or "", "accepted")
        await self._control.cordon(name, WORDS[word], who)
        if word == "drain":
            await self._drained(name, wait_s)
        answer = {
            "endpoint": name,
            "state": WORDS[word].value,
            "by": who,
            "inflight": self._inflight(name),
        }
        return web.Response(body=msgspec.json.encode(answer), content_type=JSON)

    def _authorize(self, request: web.Request) -> str | Refusal:
        header = request.headers.get("Authorization", "")
        return self._control.authorize(header, request.remote or "")

    def _wait_s(self, request: web.Request) -> float:
        """How long to wait for a drain."""
        text = request.query.get("wait_s")
        if text is None:
            return self._control.config.limits.drain_s
        try:
            wait_s = float(text)
        except ValueError:
            wait_s = -1.0
        if not 0 <= wait_s <= MAX_WAIT_S:
            raise web.HTTPBadRequest(reason=f"wait_s must be 0 to {MAX_WAIT_S:g} seconds")
        return wait_s

    async def _drained(self, name: str, wait_s: float) -> None:
        """Wait until no worker has anything in flight there, at most that long."""
        snapshot = self._control.snapshot
        version = snapshot.version if snapshot is not None else 0
        deadline_s = time.monotonic() + wait_s
        while time.monotonic() < deadline_s and not self._heard(version):
            await asyncio.sleep(DRAIN_POLL_S)  # until then one may still send something there
        while time.monotonic() < deadline_s and self._inflight(name):
            await asyncio.sleep(DRAIN_POLL_S)

    def _heard(self, version: int) -> bool:
        """Whether each worker that runs decides with this snapshot, or a later one."""
        counters = self._control.counters
        cells, fresh_s = counters.layout.worker, time.monotonic() - WORKER_ALIVE_S
        return all(
            row.cells[cells.snapshot] >= version
            for row in counters.rows
            if row.cells[cells.pid] and row.reals[cells.alive_at_s] > fresh_s
        )

    def _inflight(self, name: str) -> int:
        counters = self._control.counters
        return sum(
            counters.total(cells.inflight)
            for (_, endpoint), cells in counters.layout.endpoints.items()
            if endpoint == name
        )


def _hostname(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(refused: Refusal) -> web.Response:
    response = web.Response(body=refused.body, status=refused.status, content_type=JSON)
    if refused.challenge:
        response.headers["WWW-Authenticate"] = refused.challenge.decode()
    return response


def _error(status: int, message: str) -> web.Response:
    body = msgspec.json.encode({"error": {"message": message}})
    return web.Response(body=body, status=status, content_type=JSON)
