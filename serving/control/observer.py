"""Watches everything that the control process observes, and makes the next ``Snapshot`` of it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trainmesh.errors import StoreError
from trainmesh.rundir import RunDir
from trainmesh.serving.cluster.cluster import Cluster
from trainmesh.serving.cluster.cordons import (
    Cordon,
    CordonState,
    cordon_prefix,
    newest,
)
from trainmesh.serving.cluster.peers import (
    Load,
    PeerEndpoint,
    RouterState,
    demand_of,
    encoded,
    fresh,
    loads_of,
    router_prefix,
)
from trainmesh.serving.cluster.store_cache import StoreCache
from trainmesh.serving.cluster.verdicts import in_force
from trainmesh.serving.cluster.vivaldi import Space
from trainmesh.serving.config.types import Config
from trainmesh.serving.control.snapshot import Observations, Snapshot, assemble
from trainmesh.serving.signals.fetch import Fetcher
from trainmesh.serving.signals.gpu_watch import GpuWatch
from trainmesh.serving.signals.poller import surface
from trainmesh.serving.signals.probe_state import ProbeState
from trainmesh.serving.signals.probes import EndpointProber
from trainmesh.serving.signals.scrape import Scraper
from trainmesh.store.base import Store
from trainmesh.wire import encode

__all__ = ["Local", "Observer"]

PUBLISH_EVERY_S = 1.0


@dataclass(frozen=True)
class Local:
    """What this router's own workers have in flight, by endpoint URL, and the requests that they
    could not place (waiting or refused), by model: what other routers are told."""

    loads: dict[str, Load] = field(default_factory=dict)
    demand: dict[str, float] = field(default_factory=dict)


class Observer:
    """Runs as tasks of the current event loop between ``start`` and ``close``.

    ``local`` is asked once a second. ``on_change`` is called (on the loop) whenever an endpoint
    may have come or gone: take a snapshot then, and every quarter of a second or so otherwise.
    ``log`` gets lines for the operator.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_change: Callable[[], None],
        log: Callable[[str], None],
        local: Callable[[], Local] = Local,
    ) -> None:
        self._config = config
        self._on_change = on_change
        self._log = log
        self._local = local
        self.name = config.routers.name or f"{socket.gethostname()}-{os.getpid()}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cluster = Cluster(config, self.name, log)
        self._store_cache: StoreCache | None = None
        self._fetcher: Fetcher | None = None
        self._prober: EndpointProber | None = None
        self._scraper: Scraper | None = None
        self._gpus = GpuWatch(self._log_soon)
        self._space = Space(random.Random(0))  # noqa: S311 - directions of springs, no secret
        self._cordons: dict[str, Cordon] = {}
        self._snapshot: Snapshot | None = None
        self._sequence = 0
        self._said_store = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._loop = asyncio.get_running_loop()
        self._fetcher = Fetcher()
        self._prober = EndpointProber(self._fetcher, self._on_change)
        self._scraper = Scraper(self._fetcher)
        self._open_mirror()
        self._watch()
        self._task = asyncio.create_task(self._publish_forever())
        self._task.add_done_callback(surface)

    async def close(self) -> None:
        """End every task and thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for part in (self._prober, self._scraper, self._gpus, self._fetcher):
            if part is not None:
                await part.close()
        await self._close_mirror()

    async def update(self, config: Config) -> None:
        """Watch the endpoints of ``config`` from now on; the state of endpoints that stay is kept.

        Raises:
            GraphError: its topology file can't be used; all stays as it was.
        """
        before = self._config
        cluster = Cluster(config, self.name, self._log, previous=self._cluster)
        self._config, self._cluster = config, cluster
        if (before.routers, before.topology) != (config.routers, config.topology):
            await self._close_mirror()
            self._open_mirror()
        elif self._store_cache is not None:
            cluster.read(self._store_cache.under)
        self._watch()
        self._on_change()

    @property
    def probe_states(self) -> Mapping[str, ProbeState]:
        """What health checks have found, by URL."""
        return self._prober.probe_states if self._prober is not None else {}

    def cordon(self, endpoint: str, state: CordonState, by: str) -> None:
        """Apply an admin's order for an endpoint (by name); other routers of the group get it
        too."""
        word = Cordon(state=state, by=by, since_unix_s=time.time())
        self._cordons[endpoint] = word
        if self._store_cache is not None:
            self._store_cache.put(
                f"{cordon_prefix(self._config.routers.group)}{endpoint}", encode(word)
            )
        self._on_change()

    def snapshot(self, now_s: float) -> Snapshot:
        """What is known now."""
        heard = fresh(self._cluster.heard, now_s)
        now_unix_s = time.time()
        seen = Observations(
            probe_states=dict(self._prober.probe_states) if self._prober else {},
            revisions=dict(self._prober.revisions) if self._prober else {},
            listed=dict(self._prober.listed) if self._prober else {},
            reports=self._scraper.reports() if self._scraper else {},
            derates=self._gpus.derates(),
            estimates_s=self._estimates_s(),
            ways=self._cluster.ways(now_s, now_unix_s),
            verdicts=in_force(self._cluster.verdicts, now_unix_s),
            cordons=newest(self._cordons, self._cluster.cordons),
            loads=loads_of(heard, now_s),
            demand=demand_of(heard, now_s),
            routers=tuple(sorted(one.state.name for one in heard)),
            store=self._describe_store(),
        )
        self._snapshot = assemble(self._config, seen, now_s, previous=self._snapshot)
        return self._snapshot

    def _watch(self) -> None:
        if self._prober is not None and self._scraper is not None:
            self._prober.update(self._config)
            self._scraper.update(self._config)
            self._gpus.update(self._config)

    def _describe_store(self) -> str:
        if self._store_cache is None:
            return ""
        return self._store_cache.problem or "answers"

    def _open_mirror(self) -> None:
        etcd, job = self._config.routers.etcd, self._config.topology.job
        if etcd or job:
            self._store_cache = StoreCache(
                lambda: _connect(etcd, job), self._cluster.prefixes, self._call_refresh
            )
            self._store_cache.start()

    async def _close_mirror(self) -> None:
        store_cache, self._store_cache = self._store_cache, None
        if store_cache is not None:
            await asyncio.to_thread(store_cache.close)

    def _call_refresh(self) -> None:
        """Called on the mirror's thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._refresh)

    def _log_soon(self, text: str) -> None:
        """Called on other threads."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._log, text)

    def _refresh(self) -> None:
        if self._store_cache is None:
            return
        problem = self._store_cache.problem
        if problem != self._said_store:
            self._said_store = problem
            self._log(f"store: {problem}" if problem else "store: answers")
        if self._cluster.read(self._store_cache.under):
            self._on_change()

    async def _publish_forever(self) -> None:
        while True:
            self._learn_distances()
            if self._store_cache is not None:
                key = f"{router_prefix(self._config.routers.group)}{self.name}"
                self._store_cache.publish(key, encoded(self._state()))
            await asyncio.sleep(PUBLISH_EVERY_S)

    def _state(self) -> RouterState:
        self._sequence += 1
        local = self._local()
        signals = self._snapshot.signals if self._snapshot is not None else {}
        nodes = {
            (name, endpoint.name): endpoint.node
            for name, model in self._config.models.items()
            for endpoint in model.endpoints
        }
        return RouterState(
            name=self.name,
            sequence=self._sequence,
            loads=local.loads,
            rtts_s=self._rtts_s(),
            demand=local.demand,
            places=tuple(
                PeerEndpoint(model, one.name, nodes.get((model, one.name), ""), not one.excluded)
                for model, many in signals.items()
                for one in many
            ),
        )

    def _rtts_s(self) -> dict[str, float]:
        probe_states = self._prober.probe_states if self._prober is not None else {}
        return {
            url: probe_state.rtt_s
            for url, probe_state in probe_states.items()
            if probe_state.rtts_s
        }

    def _learn_distances(self) -> None:
        """Move the coordinates by what we and others have measured."""
        heard = fresh(self._cluster.heard, time.monotonic())
        if not heard:
            return  # nobody else measures anything
        samples = [(self.name, url, rtt_s) for url, rtt_s in self._rtts_s().items()]
        samples += [
            (one.state.name, url, rtt_s) for one in heard for url, rtt_s in one.state.rtts_s.items()
        ]
        self._space.keep(name for a, b, _ in samples for name in (a, b))
        for a, b, rtt_s in samples:
            self._space.observe(a, b, rtt_s)

    def _estimates_s(self) -> dict[str, float]:
        """Of endpoints that we have not measured ourselves."""
        measured = self._rtts_s()
        return {
            endpoint.url: self._space.estimate_s(self.name, endpoint.url)
            for model in self._config.models.values()
            for endpoint in model.endpoints
            if endpoint.url not in measured
        }


def _connect(url: str, job: str) -> Store:
    """The configured etcd, else that of the training job if it runs on this machine. Imported
    here: routers without etcd do without gRPC.

    Raises:
        StoreError: there is neither.
        ConfigError: the URL, or what the environment says of users and certificates.
    """
    from trainmesh.store.address import security_from_environment
    from trainmesh.store.etcd import connect

    url = url or next((info.etcd for _, info in RunDir.live() if info.job == job), "")
    if not url:
        raise StoreError(f"job {job} does not run on this machine; set routers.etcd")
    return connect(url, **security_from_environment())
