"""The node's agent: ranks' datagrams in, reports to the store; hints from the store, file out.

It holds the node's one connection to etcd, so that no training process needs one. Run by the
launcher as ``python -m trainmesh.agent.process``; it ends on SIGTERM or when its standard input
closes. A dead agent costs a rank nothing: reports are dropped and the last hint stays in its file.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from msgspec import Raw
from msgspec.structs import replace

from trainmesh.clock import Clock, SystemClock
from trainmesh.console import note
from trainmesh.errors import PlanError, StoreError, TrainmeshError, WireError
from trainmesh.probe.agent import Prober
from trainmesh.process import LOOK_AGAIN_S, ControlEnvironment, Stop, run_process, run_with_store
from trainmesh.process_health import HealthReporter
from trainmesh.rundir import socket_address, write_atomically
from trainmesh.store.base import Change, Lease, Store, job_prefix
from trainmesh.topology.validate import validate
from trainmesh.types import AgentInfo, Hint, NodeReport, RankReport, StepReport
from trainmesh.wire import MAX_BYTES, decode, encode

__all__ = ["main", "thin"]

PUBLISH_EVERY_S = 1.0
"""Between two batches of reports: what the coordinator decides on is at most this old."""
LEASE_TTL_S = 10
"""A node that doesn't renew for this long is gone; a pause of the machine may be a few seconds."""
DETAILED_STEPS_A_REPORT = 8
"""Steps of one report that keep their buckets; of the others only the times remain."""
MAX_WAITING_REPORTS = 4_096
"""Kept while the store is away; the oldest go first."""
MAX_DATAGRAM_BYTES = 256 * 1024
"""More than the kernel lets a rank send in one (net.core.wmem_default, some 200 kB)."""
APPLIED = ("status", "hint", "probe/request")
"""The job's keys that an agent acts on."""


def thin(reports: list[RankReport], keep: int) -> list[RankReport]:
    """Leave bucket times on at most ``keep`` steps of a rank and module, on the same steps for
    every rank: those whose number is a multiple of a power of two."""
    numbers = {step.step for report in reports for step in report.steps}
    stride = 1
    while sum(number % stride == 0 for number in numbers) > keep:
        stride *= 2
    return [
        replace(report, steps=tuple(_without_buckets(step, stride) for step in report.steps))
        for report in reports
    ]


def _without_buckets(step: StepReport, stride: int) -> StepReport:
    if step.step % stride == 0:
        return step
    return StepReport(
        step.rank, step.module, step.step, step.epoch, step.begin_ns, step.end_ns, step.loss, ()
    )


class Inbox:
    """Reports of the node's ranks that have not been published yet; bounded, oldest go first."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        """Set when no more reports will come."""
        self.news = threading.Event()
        """Set when a process has introduced itself: nothing is planned before the coordinator
        knows all of them, so that is published at once."""
        self._greeted: set[tuple[int, int]] = set()
        """Process and world."""
        self._lock = threading.Lock()
        self._reports: deque[RankReport] = deque()
        self._dropped = 0
        self._last_dropped: dict[int, int] = {}

    def put(self, report: RankReport) -> None:
        with self._lock:
            if len(self._reports) >= MAX_WAITING_REPORTS:
                self._reports.popleft()
                self._dropped += 1
            self._reports.append(report)
            hello = report.hello
            if hello is not None and (hello.pid, hello.world) not in self._greeted:
                self._greeted.add((hello.pid, hello.world))
                self.news.set()

    def reject(self) -> None:
        with self._lock:
            self._dropped += 1

    def take(self) -> tuple[list[RankReport], int]:
        """All waiting reports, and how many were lost since the last call."""
        with self._lock:
            reports, self._reports = list(self._reports), deque()
            dropped, self._dropped = self._dropped, 0
            for report in reports:
                if report.hello is not None:
                    known = self._last_dropped.get(report.hello.pid, 0)
                    dropped += max(0, report.dropped - known)
                    self._last_dropped[report.hello.pid] = report.dropped
            return reports, dropped

    def put_back(self, reports: list[RankReport], dropped: int) -> None:
        """What ``take`` gave could not be published; it is the oldest that there is."""
        with self._lock:
            room = max(0, MAX_WAITING_REPORTS - len(self._reports))
            kept = reports[max(0, len(reports) - room) :] if room else []
            self._reports.extendleft(reversed(kept))
            self._dropped += dropped + len(reports) - len(kept)


class AgentSession:
    """The agent's side of the store: publishes the inbox, brings hints and status down."""

    def __init__(
        self,
        environment: ControlEnvironment,
        inbox: Inbox,
        health: HealthReporter,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._node = environment.node
        self._job = environment.job
        self._etcd = environment.etcd
        self._run = environment.run
        self._prefix = job_prefix(environment.job)
        self._inbox = inbox
        self._health = health
        self._prober: Prober | None = None
        self._info = AgentInfo(
            node=self._node, pid=os.getpid(), started_unix_s=self._clock.unix_s()
        )
        self._is_deleted = threading.Event()
        """Somebody has deleted this agent's entry, although it lives."""
        self._must_list = threading.Event()
        """The watch has lost changes."""
        self._applied: dict[str, int] = {}
        """By key, the revision that was applied last in this session."""
        self._written = 0
        """Revision of the last write in this session."""
        self._look_again_s = 0.0
        self._number = secrets.randbits(62) + 1
        self._sequence = 0

    def session(self, store: Store, stop: Stop) -> None:
        """Serve until ``stop`` or the lease is lost (then the caller comes again)."""
        lease = store.lease(LEASE_TTL_S)
        self._is_deleted.clear()
        self._must_list.clear()
        self._applied.clear()
        self._written = self._register(store, lease)
        self._prober = Prober(self._node, self._etcd, store, lease, self._job)
        try:
            self._serve(store, lease, stop)
        finally:
            self._prober.close()
            lease.close()

    def _register(self, store: Store, lease: Lease) -> int:
        return store.put(f"{self._prefix}agents/{self._node}", encode(self._info), lease)

    def _serve(self, store: Store, lease: Lease, stop: Stop) -> None:
        watch = store.watch(self._prefix, self._changed, start_revision=self._refresh(store) + 1)
        try:
            while not stop.is_set() and not lease.lost:
                if self._inbox.news.wait(PUBLISH_EVERY_S):
                    self._inbox.news.clear()
                if not self._run.socket.exists():
                    raise TrainmeshError(f"somebody has removed {self._run.socket}")
                if self._is_deleted.is_set():
                    self._is_deleted.clear()
                    self._register(store, lease)
                if self._must_list.is_set():
                    self._must_list.clear()
                    self._applied.clear()
                    self._refresh(store)
                elif self._clock.monotonic_s() >= self._look_again_s:
                    self._look_again_s = self._clock.monotonic_s() + LOOK_AGAIN_S
                    self._read_hint_again(store)
                self._publish(store)
            if stop.is_set():
                self._inbox.closed.wait(timeout=1.0)
            self._publish(store)
        finally:
            watch.close()

    def _refresh(self, store: Store) -> int:
        entries, revision = store.list(self._prefix)
        for entry in entries:
            self._apply(entry.key, entry.value, entry.mod_revision)
        return revision

    def _read_hint_again(self, store: Store) -> None:
        entry = store.get(f"{self._prefix}hint")
        if entry is not None and entry.mod_revision > self._applied.get("hint", 0):
            self._apply(entry.key, entry.value, entry.mod_revision)

    def _changed(self, changes: list[Change]) -> None:
        for change in changes:
            if change.resync:
                self._must_list.set()
            elif change.value is not None:
                self._apply(change.key, change.value, change.revision)
            elif change.key == f"{self._prefix}probe/request" and self._prober is not None:
                self._prober.see(None)
            elif change.key == f"{self._prefix}agents/{self._node}":
                self._is_deleted.set()

    def _apply(self, key: str, value: bytes, revision: int) -> None:
        name = key.removeprefix(self._prefix)
        if name not in APPLIED or revision < self._applied.get(name, 0):  # older than the watch's
            return
        self._applied[name] = revision
        if name == "status":
            self._write(self._run.status, value[:MAX_BYTES])
            self._write(self._run.status_time, str(self._clock.monotonic_s()).encode())
        elif name == "hint":
            try:
                hint = decode(value, Hint, what=key)
                validate(hint.plan, hint.plan.world_size)
            except (WireError, PlanError) as error:
                note(f"hint refused: {error}")
                return
            self._write(self._run.hint, value)
        elif self._prober is not None:
            self._prober.see(value)

    def _write(self, path: Path, value: bytes) -> None:
        with self._health.writing(path):
            write_atomically(path, value)

    def _publish(self, store: Store) -> None:
        """Send what has come in; what can't be sent is kept for the next time.

        Raises:
            StoreError: it can't be sent, or the store has lost what it held before.
        """
        reports, dropped = self._inbox.take()
        batches = _batches(thin(reports, DETAILED_STEPS_A_REPORT))
        while batches:
            self._sequence += 1
            report = NodeReport(
                node=self._node,
                agent=self._number,
                sequence=self._sequence,
                reports=tuple(one.encoded for one in batches[0]),
                dropped=dropped,
            )
            try:
                revision = store.put(f"{self._prefix}reports/{self._node}", encode(report))
            except StoreError:
                self._inbox.put_back([one.report for batch in batches for one in batch], dropped)
                raise
            del batches[0]
            dropped = 0
            if revision < self._written:
                self._inbox.put_back([one.report for batch in batches for one in batch], dropped)
                raise StoreError("the store went back: it was emptied or restored")
            self._written = revision


@dataclass(frozen=True)
class _Encoded:
    """A report, and the same as it is sent."""

    report: RankReport
    encoded: RankReport
    """A ``Raw`` in truth: what stands in a report as it is, so that it is encoded only once."""


def _batches(reports: list[RankReport]) -> list[list[_Encoded]]:
    """Split so that each encoded batch stays below the limit of a stored value."""
    batches: list[list[_Encoded]] = []
    room = 0
    for report in reports:
        data = encode(report)
        if len(data) > room:
            batches.append([])
            room = MAX_BYTES - 1_024
        batches[-1].append(_Encoded(report, cast(RankReport, Raw(data))))
        room -= len(data)
    return batches


def listen(path: Path) -> socket.socket:
    """The socket into which ranks send their reports.

    Raises:
        TrainmeshError: it can't be made.
    """
    inlet = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        path.unlink(missing_ok=True)
        with socket_address(path) as address:
            inlet.bind(address)
    except OSError as error:
        inlet.close()
        raise TrainmeshError(f"ranks can't be heard at {path}: {error.strerror}") from error
    inlet.setblocking(False)
    return inlet


def receive(inlet: socket.socket, inbox: Inbox, stop: Stop) -> None:
    """Read datagrams into ``inbox`` until ``stop``."""
    while not stop.is_set():
        if select.select([inlet], [], [], 0.1)[0]:
            _drain(inlet, inbox)
    _drain(inlet, inbox)
    inbox.closed.set()
    inbox.news.set()


def _drain(inlet: socket.socket, inbox: Inbox) -> None:
    while True:
        try:
            data = inlet.recv(MAX_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        try:
            inbox.put(decode(data, RankReport, what="datagram"))
        except WireError:
            inbox.reject()


def serve(environment: ControlEnvironment, stop: Stop, health: HealthReporter) -> None:
    """Work until ``stop``."""
    inbox = Inbox()
    uplink = AgentSession(environment, inbox, health)
    path = environment.run.socket
    with listen(path) as inlet:
        reader = threading.Thread(target=receive, args=(inlet, inbox, stop), name="inlet")
        reader.start()
        try:
            run_with_store(environment, stop, health, lambda store: uplink.session(store, stop))
        finally:
            stop.set()
            reader.join()
            path.unlink(missing_ok=True)


def main() -> int:
    """Entry point of the agent process."""
    return run_process(serve)


if __name__ == "__main__":
    sys.exit(main())
