"""The control process of a router: it owns the workers, and everything that they are given."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Literal

from msgspec.structs import replace

from trainmesh.errors import ConfigError
from trainmesh.rundir import write_atomically
from trainmesh.serving.admin.admin import AdminServer
from trainmesh.serving.cluster.cordons import CordonState
from trainmesh.serving.cluster.peers import Load
from trainmesh.serving.config.types import Config
from trainmesh.serving.control.observer import Local, Observer
from trainmesh.serving.control.rundir import RouterInfo, ServeRun, WorkerWords
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.control.startup import Startup
from trainmesh.serving.control.worker_config import WorkerConfig, write_orders
from trainmesh.serving.control.workers import Workers
from trainmesh.serving.identity import admin_token
from trainmesh.serving.identity.audit import AuditLog
from trainmesh.serving.identity.authenticator import Authenticator
from trainmesh.serving.identity.jwks import JwksSource
from trainmesh.serving.ledger.segments import ledger_dir
from trainmesh.serving.loading.preflight import check_free, preflight, reserve
from trainmesh.serving.loading.reload import Watcher
from trainmesh.serving.observe.cells import names_of
from trainmesh.serving.observe.shared_counters import SharedCounters
from trainmesh.serving.refusal import Refusal
from trainmesh.units import count
from trainmesh.wire import encode

__all__ = ["RouterService"]

SNAPSHOT_EVERY_S = 0.25
RELOAD_EVERY_S = 1.0
RETRY_WRITE_S = 1.0
"""After a run directory could not be written: its disk is full, say."""


class RouterService:
    """One router. ``run`` it; SIGTERM or SIGINT ends it without losing a request.

    ``say`` gets the lines that an operator should see.
    """

    def __init__(self, watcher: Watcher, say: Callable[[str], None]) -> None:
        self._watcher = watcher
        self._say = say
        self._stop = asyncio.Event()
        self._signals = 0
        self._changed = asyncio.Event()
        self._generation = 1
        self.config: Config = watcher.config
        self.snapshot: Snapshot | None = None
        self.counters: SharedCounters
        self.info: RouterInfo
        self._run: ServeRun
        self._authenticator: Authenticator
        self._audit: AuditLog
        self._workers: Workers | None = None
        self._observer: Observer
        self._admin_digest = ""
        self._jwks = ""
        self._unwritten = ""
        self._owes_orders = False

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            TrainmeshError: it can't start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(
            signal.SIGHUP, self._say, "SIGHUP: serve.yaml is read within a second of any change"
        )
        stopping = asyncio.create_task(self._stop.wait())
        async with AsyncExitStack() as stack:
            if not await self._started(stack, stopping):
                self._say("stopped while it started")
                return
            tasks = [
                asyncio.create_task(self._publish_forever()),
                asyncio.create_task(self._reload_forever()),
            ]
            starting = asyncio.create_task(self._tell_start())
            if self.config.jwt is not None:
                source = JwksSource(self.config.jwt, self._take_keys, self._say)
                tasks.append(asyncio.create_task(source.run()))
            try:
                await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (*tasks, stopping, starting):
                    task.cancel()
                ended = await asyncio.gather(*tasks, starting, return_exceptions=True)
            self._say("stopping: requests on their way are finished first")
            for error in ended:
                if isinstance(error, Exception):
                    raise error

    def _end(self) -> None:
        """A signal: finish; a second one: wait for nobody; a third one: now."""
        self._signals += 1
        if self._signals == 1:
            self._stop.set()
        elif self._workers is not None and self._signals == 2:
            self._say("a second signal: requests on their way are answered with an error now")
            self._workers.cut_short()
        elif self._workers is not None:
            self._workers.kill()

    async def _started(self, stack: AsyncExitStack, stopping: asyncio.Task[Literal[True]]) -> bool:
        """Start, unless a signal comes first."""
        starting = asyncio.create_task(self._start(stack))
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
        if starting.cancelled():
            return False
        starting.result()
        return True

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self.config
        ServeRun.sweep()
        preflight(config)
        check_free(config)
        name = config.routers.name or f"{socket.gethostname()}-{os.getpid()}"
        self._run = ServeRun.create(name)
        stack.callback(self._run.remove)
        reserved = reserve(config)
        stack.callback(reserved.close)
        self._host, self._port = reserved.getsockname()[:2]
        self._admin_digest = admin_token.create(self._run.path)
        self._authenticator = Authenticator(config, admin_digests=[self._admin_digest])
        self._audit = AuditLog(Path(config.audit) if config.audit else self._run.audit)
        stack.callback(self._audit.close)
        self.counters = SharedCounters.create(
            self._run.counters(1), names_of(config), workers=config.workers, generation=1
        )
        self._observer = Observer(
            config, on_change=self._changed.set, log=self._say, local=self._local
        )
        stack.push_async_callback(self._observer.close)
        await self._observer.start()
        self._write_orders()
        self._write_snapshot()
        workers = self._workers = Workers(self._run.path, config.workers, self._say)
        stack.push_async_callback(workers.close, config.limits.drain_s)
        await workers.start()
        admin = AdminServer(self)
        stack.push_async_callback(admin.close)
        await self._publish_info(name, await admin.start())

    async def _publish_info(self, name: str, admin_url: str) -> None:
        scheme = "https" if self.config.tls is not None else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        ledger = self.ledger
        self.info = replace(
            self._run.info() or RouterInfo(name=name, pid=os.getpid()),
            listen=f"{scheme}://{host}:{self._port}",
            admin=admin_url,
            ledger=str(ledger) if ledger is not None else "",
            etcd=self.config.routers.etcd,
        )
        self._run.publish(self.info)
        endpoints = sum(len(model.endpoints) for model in self.config.models.values())
        self._say(
            f"serving {count(len(self.config.models), 'model')} on {count(endpoints, 'endpoint')} "
            f"at {self.info.listen}; admin at {admin_url}"
        )

    # -- what the admin server asks (``control.admin.Control``) ----------------------------

    @property
    def ledger(self) -> Path | None:
        """Folder of the ledger; None if none is kept."""
        return ledger_dir(self.config) if self.config.ledger.enabled else None

    def words(self) -> Sequence[WorkerWords]:
        """What each worker said last."""
        return [self._run.worker_words(index) for index in range(self.config.workers)]

    def not_ready(self) -> str:
        """Why no requests can be served now; empty if they can."""
        if self._stop.is_set():
            return "stopping"
        if not (self._workers and self._workers.alive):
            return "no worker runs"
        words = self.words()
        missing = {
            model: words[0].missing[model]
            for model in self.config.models
            if all(model in said.missing for said in words)
        }
        if len(missing) < len(self.config.models):
            return ""
        return "; ".join(f"model {model}: {why}" for model, why in missing.items())

    def authorize(self, authorization: str, remote: str) -> str | Refusal:
        """Who may act as an admin with this ``Authorization`` header."""
        found = self._authenticator.authorize_admin(
            authorization.encode("utf-8", "surrogateescape") or None
        )
        if isinstance(found, Refusal):
            self._audit.refused("unknown", "authorize", "admin", remote, found.code)
            return found
        return found.who

    async def cordon(self, endpoint: str, state: CordonState, by: str) -> None:
        """Carry an admin's word out."""
        self._observer.cordon(endpoint, state, by)
        self._write_snapshot()

    def audit(self, by: str, action: str, subject: str, remote: str, result: str) -> None:
        """Write down what an admin did, or tried to."""
        self._audit.admin(by, action, subject, remote, result)

    # -- what the workers are told ---------------------------------------------------------

    def _write_orders(self) -> None:
        config = self.config
        if self.ledger is not None:
            config = replace(config, ledger=replace(config.ledger, dir=str(self.ledger)))
        worker_config = WorkerConfig(
            generation=self._generation, config=config, host=self._host, port=self._port,
            jwks=self._jwks,
        )  # fmt: skip
        write_orders(self._run.config, worker_config)

    def _write_snapshot(self) -> None:
        self._changed.clear()
        self.snapshot = self._observer.snapshot(monotonic())
        write_atomically(self._run.snapshot, encode(self.snapshot))

    async def _publish_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SNAPSHOT_EVERY_S):
                    await self._changed.wait()
            except TimeoutError:
                pass
            try:
                if self._owes_orders:
                    self._write_orders()
                    self._owes_orders = False
                self._write_snapshot()
            except OSError as error:
                self._say_unwritten(str(error))
                await asyncio.sleep(RETRY_WRITE_S)
            else:
                self._say_unwritten("")

    def _owe_orders(self) -> None:
        self._owes_orders = True
        self._changed.set()

    def _say_unwritten(self, problem: str) -> None:
        """Workers go on with what they were told last."""
        if problem and not self._unwritten:
            self._say(f"workers can't be told what is new, and go on as they are: {problem}")
        elif self._unwritten and not problem:
            self._say("workers are told what is new again")
        self._unwritten = problem

    def _take_keys(self, jwks: bytes) -> None:
        self._jwks = jwks.decode()
        self._authenticator.set_keys(jwks)
        self._owe_orders()

    def _local(self) -> Local:
        """What our workers have in flight, for other routers."""
        counters = self.counters
        loads: dict[str, Load] = {}
        for name, model in self.config.models.items():
            for endpoint in model.endpoints:
                cells = counters.layout.endpoints[name, endpoint.name]
                before = loads.get(endpoint.url, Load(inflight=0, tokens=0))
                loads[endpoint.url] = Load(
                    inflight=before.inflight + counters.total(cells.inflight),
                    tokens=before.tokens + counters.total(cells.inflight_tokens),
                )
        demand = {
            name: float(counters.total(counters.layout.models[name].queued))
            for name in self.config.models
        }
        return Local(loads=loads, demand=demand)

    async def _tell_start(self) -> None:
        """Say which endpoints are awaited until all have answered."""
        startup = Startup(monotonic())
        while not startup.over:
            await asyncio.sleep(SNAPSHOT_EVERY_S)
            if line := startup.look(self.config, self._observer.probe_states, monotonic()):
                self._say(line)

    # -- reload ----------------------------------------------------------------------------

    async def _reload_forever(self) -> None:
        waiting: Config | None = None
        told: Config | None = None
        while True:
            await asyncio.sleep(RELOAD_EVERY_S)
            found = await asyncio.to_thread(self._watcher.look)  # a pipe is awaited
            for line in found.lines if found is not None else ():
                self._say(line)
            if found is not None and found.config is not None:
                waiting = found.config
            if waiting is None:
                continue
            try:
                await self._reload(waiting)
            except ConfigError as error:
                self._say(f"the new configuration is not used: {error}")
            except OSError as error:
                if waiting is not told:
                    self._say(f"the new configuration is not used yet: {error}")
                    told = waiting
                continue
            waiting = None

    async def _reload(self, config: Config) -> None:
        """
        Raises:
            ConfigError: it can't be used.
            OSError: the run directory can't be written now.
        """
        await self._observer.update(config)
        old = self.counters
        self.counters = SharedCounters.create(
            self._run.counters(self._generation + 1), names_of(config), workers=config.workers,
            generation=self._generation + 1, old=old,
        )  # fmt: skip
        self.config = config
        self._generation += 1
        old.remove()
        self._authenticator = Authenticator(config, admin_digests=[self._admin_digest])
        if self._jwks:
            self._authenticator.set_keys(self._jwks.encode())
        self._owe_orders()
