"""Active health checks and round trips of every endpoint."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Mapping

from yarl import URL

from trainmesh.serving.config.types import Config, EndpointConfig, Runtime
from trainmesh.serving.signals.fetch import Fetched, Fetcher, describe_error, root_of
from trainmesh.serving.signals.listing import Card, cards_in, models_path
from trainmesh.serving.signals.poller import Poller
from trainmesh.serving.signals.probe_state import ProbeState
from trainmesh.serving.signals.revisions import revision_path, revisions_in

__all__ = ["HEALTH_PATHS", "EndpointProber", "problem_of", "tcp_rtt_s"]

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 3.0
"""A busy engine answers its health page late; that is not a fault yet."""
REVISION_EVERY_S = 30.0
MODELS_EVERY_S = 10.0
"""How soon adapters that were loaded or unloaded are noticed."""
HEALTH_PATHS: Mapping[Runtime, str] = {
    Runtime.OPENAI: "/v1/models",
    Runtime.VLLM: "/health",
    Runtime.SGLANG: "/health",
    Runtime.TGI: "/health",
    Runtime.LLAMACPP: "/health",
    Runtime.TORCHSERVE: "/ping",
    Runtime.TRITON: "/v2/health/ready",
    Runtime.KSERVE: "/v2/health/ready",
    Runtime.OVMS: "/v2/health/ready",
}
SAYS_NO_BY_4XX = (Runtime.TRITON, Runtime.KSERVE, Runtime.OVMS)
"""The Open Inference Protocol: "a 4xx status code indicates false"."""
RTT_OFFSET = 68
"""Of ``tcpi_rtt``, microseconds, in Linux's ``struct tcp_info`` (linux/tcp.h)."""


def problem_of(runtime: Runtime, path: str, answer: Fetched) -> str:
    """What is wrong with the answer to a health check; empty if nothing is.

    Only a server that says so itself is unhealthy. A server without the page (404, 501), or one
    that wants a key for it (401, 403), is alive.
    """
    if answer.problem:
        return f"GET {path}: {answer.problem}"
    status = answer.status
    unhealthy = status >= 500 and status != 501
    if runtime in SAYS_NO_BY_4XX:
        unhealthy = unhealthy or status == 400
    return f"GET {path} was answered with {status}" if unhealthy else ""


async def tcp_rtt_s(host: str, port: int) -> float:
    """The round trip to ``host`` as the kernel saw it when it connected, so that what this process
    is busy with does not count; 0 where it can't be told.

    Raises:
        OSError: no connection.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refused: OSError | None = None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as asked:
            asked.setblocking(False)
            try:
                await loop.sock_connect(asked, address)
            except OSError as error:
                refused = error
                continue
            info = asked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RTT_OFFSET + 4)
            microseconds: int = struct.unpack_from("=I", info, RTT_OFFSET)[0]
            return microseconds / 1e6
    raise refused or OSError(f"{host} has no address")


class EndpointProber:
    """Keeps ``probe_states`` and ``revisions`` (by URL) up to date; calls ``on_change`` when an
    endpoint went down, came back or has other revisions."""

    def __init__(
        self,
        fetcher: Fetcher,
        on_change: Callable[[], None],
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self.probe_states: dict[str, ProbeState] = {}
        self.revisions: dict[str, tuple[str, ...]] = {}
        self.listed: dict[str, dict[str, Card]] = {}
        """By URL: the models that it lists."""
        self._listed_at_s: dict[str, float] = {}
        self._fetcher = fetcher
        self._on_change = on_change
        self._timeout_s = answer_timeout_s
        self._rounds = Poller(self._probe)
        self._interval_s = 1.0
        self._models: dict[str, str] = {}
        self._asked_at_s: dict[str, float] = {}

    def update(self, config: Config) -> None:
        """Probe the endpoints of ``config`` from now on."""
        self._interval_s = config.telemetry.probe_interval_s
        self._models = {
            endpoint.url: name
            for name, model in config.models.items()
            for endpoint in model.endpoints
        }
        gone = self._rounds.update(
            endpoint for model in config.models.values() for endpoint in model.endpoints
        )
        for url in gone:
            for kept in (self.probe_states, self.revisions, self._asked_at_s, self.listed,
                         self._listed_at_s):  # fmt: skip
                kept.pop(url, None)

    async def close(self) -> None:
        await self._rounds.close()

    async def _probe(self, endpoint: EndpointConfig) -> float:
        before = self.probe_states.get(endpoint.url, ProbeState())
        probe_state = await self._check(endpoint, before)
        self.probe_states[endpoint.url] = probe_state
        changed = bool(probe_state.down) != bool(before.down)
        if not probe_state.problem:
            came_back = bool(before.problem)
            changed = await self._ask_revision(endpoint, came_back=bool(before.down)) or changed
            changed = await self._ask_models(endpoint, came_back=came_back) or changed
        if changed:
            self._on_change()
        return self._interval_s

    async def _check(self, endpoint: EndpointConfig, before: ProbeState) -> ProbeState:
        root = root_of(endpoint.url)
        path = HEALTH_PATHS[endpoint.runtime]
        url = _under(root, path)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                rtt_s = await tcp_rtt_s(root.host or "", root.port or 80)
        except TimeoutError:
            return before.failed(f"no connection within {CONNECT_TIMEOUT_S:g} s", time.monotonic())
        except OSError as error:
            return before.failed(f"no connection: {describe_error(error)}", time.monotonic())
        problem = problem_of(
            endpoint.runtime, path, await self._fetcher.get(endpoint, url, self._timeout_s)
        )
        now_s = time.monotonic()
        return before.failed(problem, now_s) if problem else before.passed(rtt_s, now_s)

    async def _ask_revision(self, endpoint: EndpointConfig, *, came_back: bool) -> bool:
        """Now and then, and after a restart. True if the answer is another one than before."""
        url = endpoint.url
        path = revision_path(endpoint, self._models.get(url, ""))
        due_s = self._asked_at_s.get(url, -REVISION_EVERY_S) + REVISION_EVERY_S
        if not path or not endpoint.revision or (time.monotonic() < due_s and not came_back):
            return False
        self._asked_at_s[url] = time.monotonic()
        answer = await self._fetcher.get(endpoint, _under(root_of(url), path), self._timeout_s)
        if answer.status != 200:
            return False
        told = revisions_in(answer.body)
        changed = told != self.revisions.get(url, ())
        self.revisions[url] = told
        return changed

    async def _ask_models(self, endpoint: EndpointConfig, *, came_back: bool) -> bool:
        """Now and then, and after a restart. True if it lists others than before."""
        url, now_s = endpoint.url, time.monotonic()
        path = models_path(endpoint)
        due_s = self._listed_at_s.get(url, -MODELS_EVERY_S) + MODELS_EVERY_S
        if not path or (now_s < due_s and not came_back):
            return False
        self._listed_at_s[url] = now_s
        where = _under(root_of(url), path)
        answer = await self._fetcher.get(endpoint, where, self._timeout_s, keyed=True)
        if answer.status != 200:
            return False
        listed = cards_in(answer.body)
        changed = listed != self.listed.get(url, {})
        self.listed[url] = listed
        return changed


def _under(root: URL, path: str) -> URL:
    return root.with_path(root.path.rstrip("/") + path, encoded=True)
