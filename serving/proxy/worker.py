"""A worker process: ``python -m trainmesh.serving.proxy.worker RUNDIR INDEX``.

It listens beside its siblings on the same port (SO_REUSEPORT), follows the files in the run
directory, and ends when its standard input does: then its control process is gone or wants it to
stop. It stops accepting at once, lets the requests on their way finish, and exits. What has not
finished after ``limits.drain_s``, or at CUT_SHORT, is answered with an error.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from pathlib import Path
from time import monotonic, time

import uvloop

from trainmesh.errors import TrainmeshError, WireError
from trainmesh.rundir import write_atomically
from trainmesh.serving.control.rundir import ServeRun, WorkerWords
from trainmesh.serving.control.snapshot import Snapshot
from trainmesh.serving.control.worker_config import CUT_SHORT, MAX_BYTES, FileWatch, read_orders
from trainmesh.serving.observe.log import LOGGER, Logs, log_event
from trainmesh.serving.observe.shared_counters import SharedCounters
from trainmesh.serving.proxy.client.connection import ClientConnection
from trainmesh.serving.proxy.loops import ViaChain
from trainmesh.serving.proxy.router import Router
from trainmesh.wire import decode, encode

__all__ = ["READY", "Worker", "main"]

READY = b"ready\n"
FLUSH_S = 2.0
"""For clients to take what their cut answers end with; less than the control process waits."""
TICK_S = 0.05
SLOW_TICKS = 10
"""What is not urgent is done in every tenth tick."""
BACKLOG = 4096
MMAP_THRESHOLD_BYTES = 512 << 10
"""Bodies of this size or more have mappings of their own, which end with them. Left alone, glibc
raises its threshold to the largest body ever freed, and heap that one small object lies above is
kept: up to 56 MiB after 100 bodies of 1 MiB. Twice what one read of a socket takes (256 KiB), as
a mapping for each read would cost page faults."""


class Worker:
    """One worker: a router, its listener, and what it is told."""

    def __init__(self, run: ServeRun, index: int, logs: Logs) -> None:
        self._run = run
        self._logs = logs
        self._index = index
        self._watch_orders = FileWatch(run.config)
        self._watch_snapshot = FileWatch(run.snapshot)
        self._watch_orders.changed()
        self._worker_config = read_orders(run.config)
        self._counters = SharedCounters.open(run.counters(self._worker_config.generation))
        self._draining = asyncio.Event()
        self._cut_short = False
        self._tls = None
        self._words = WorkerWords()
        self.router: Router

    async def serve(self) -> None:
        """Run until the control process is gone or says stop.

        Raises:
            TrainmeshError: the configuration can't be used here.
        """
        loop = asyncio.get_running_loop()
        row = self._counters.row(self._index)
        row.clear_gauges()
        row.cells[row.layout.worker.pid] = os.getpid()
        row.reals[row.layout.worker.started_unix_s] = time()
        way = ViaChain(self._run.path.name.encode())
        self.router = Router(self._worker_config, row, self._index, loop, way)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._draining.set)
        loop.add_signal_handler(CUT_SHORT, self._hear_cut_short)
        loop.add_reader(sys.stdin.fileno(), self._hear_control)
        limits = self._worker_config.config.limits
        server = await loop.create_server(
            lambda: ClientConnection(self.router),
            sock=_listener(self._worker_config.host, self._worker_config.port),
            ssl=self.router.listener_tls,
            ssl_handshake_timeout=limits.header_timeout_s if self.router.listener_tls else None,
            backlog=BACKLOG,
        )
        self._tick_all(monotonic())
        os.write(sys.stdout.fileno(), READY)
        try:
            await self._run_ticks()
            server.close()
            await self._drain()
        finally:
            loop.remove_reader(sys.stdin.fileno())
            self.router.close()

    def _hear_control(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            self._draining.set()

    def _hear_cut_short(self) -> None:
        self._cut_short = True

    async def _run_ticks(self) -> None:
        loop = asyncio.get_running_loop()
        due_s, count = loop.time(), 0
        while not self._draining.is_set():
            due_s += TICK_S
            late_s = loop.time() - due_s
            if late_s > TICK_S:
                due_s = loop.time()
            try:
                async with asyncio.timeout_at(due_s):
                    await self._draining.wait()
            except TimeoutError:
                pass
            self._tick(monotonic(), max(0.0, late_s))
            count += 1
            if count % SLOW_TICKS == 0:
                self._tick_slowly(monotonic())

    def _tick_all(self, now_s: float) -> None:
        self._tick(now_s, 0.0)
        self._tick_slowly(now_s)

    def _tick(self, now_s: float, late_s: float) -> None:
        if self._watch_orders.changed():
            self._reload()
        if self._watch_snapshot.changed():
            self._take_snapshot(now_s)
        self.router.tick(now_s, late_s)
        if len(self._counters.rows) > 1:
            self.router.hear_others(self._counters, self._index)

    def _tick_slowly(self, now_s: float) -> None:
        self.router.tick_slowly(now_s)
        row = self._counters.row(self._index)
        row.cells[row.layout.worker.log_dropped] = self._logs.dropped
        words = WorkerWords(excluded=self.router.exclusions(), missing=self.router.missing())
        if words != self._words:
            self._words = words
            write_atomically(self._run.words(self._index), encode(words))

    def _reload(self) -> None:
        try:
            worker_config = read_orders(self._run.config)
            if worker_config.generation != self._worker_config.generation:
                counters = SharedCounters.open(self._run.counters(worker_config.generation))
                row = counters.row(self._index)
                row.adopt(self._counters.row(self._index))
                self.router.reload(worker_config, row)
                self._counters = counters
            else:
                self.router.hear_keys(worker_config)
            self._worker_config = worker_config
        except TrainmeshError as error:
            log_event(LOGGER, "reload_refused", reason=str(error))

    def _take_snapshot(self, now_s: float) -> None:
        try:
            data = self._run.snapshot.read_bytes()
            snapshot = decode(data, Snapshot, what="snapshot.json", max_bytes=MAX_BYTES)
        except (OSError, WireError) as error:
            log_event(LOGGER, "snapshot_refused", reason=str(error))
            return
        self.router.take(snapshot, now_s)

    async def _drain(self) -> None:
        router, limit_s = self.router, self._worker_config.config.limits.drain_s
        router.drain()
        until_s = monotonic() + limit_s
        while router.busy and monotonic() < until_s and not self._cut_short:
            await asyncio.sleep(TICK_S)
            self._tick_all(monotonic())
        if router.busy:
            reason = "told to" if self._cut_short else f"limits.drain_s ({limit_s:g} s) is over"
            log_event(LOGGER, "drain_cut_short", requests=router.busy, reason=reason)
            router.cut_short("the router stops and can't wait for the answer's end")
            until_s = monotonic() + FLUSH_S
            await asyncio.sleep(TICK_S)
            while router.unsent and monotonic() < until_s:
                await asyncio.sleep(TICK_S)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    return listener


def _give_back_large_bodies() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc; musl never keeps them
    if mallopt is not None:
        m_mmap_threshold = -3  # malloc.h
        mallopt(m_mmap_threshold, MMAP_THRESHOLD_BYTES)


def main(argv: list[str]) -> int:
    """Run worker ``argv[1]`` of the run directory ``argv[0]``."""
    index = int(argv[1])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # for the control process to hear
    logs = Logs(f"worker-{index}")
    _give_back_large_bodies()
    try:
        worker = Worker(ServeRun(Path(argv[0])), index, logs)
        # What is there now stays; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(worker.serve())
    except TrainmeshError as error:
        log_event(LOGGER, "worker_failed", reason=str(error))
        return 1
    finally:
        logs.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
