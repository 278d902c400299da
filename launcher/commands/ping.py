"""``trainmesh ping NODE [JOB]``: round trips between two agents, over the job's interface."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from trainmesh.errors import TrainmeshError
from trainmesh.launcher import jobs
from trainmesh.launcher.probe.session import GRACE_S, ProbeSession, nodes_of
from trainmesh.launcher.run import signals
from trainmesh.launcher.terminal import Output
from trainmesh.probe.interface import machine_id
from trainmesh.probe_types import PairMeasure
from trainmesh.store.base import Store
from trainmesh.topology.measure.probing import summary
from trainmesh.types import JobStatus
from trainmesh.units import duration

__all__ = ["add_arguments", "run"]

EVERY_S = 0.2
"""Between two round trips: a hundred of them take 20 s."""
WAIT_S = 2.0
"""For one answer; within a cluster it takes milliseconds, or doesn't come."""
MAX_COUNT = 10_000
"""Half an hour of round trips; longer ones are Ctrl-C's business."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", help="the node whose agent is to answer")
    jobs.add_arguments(parser)
    parser.add_argument(
        "--count", metavar="N", type=_count, default=5, help="round trips (default: 5)"
    )


def run(args: argparse.Namespace) -> int:
    """Ping; 0 if anything came back, else 1."""
    status = jobs.find_job(args)
    with signals.raising(), jobs.opened_store(args, status.job) as store:
        nodes = nodes_of(store, status.job) if store is not None else []
        if store is None or args.node not in nodes:
            known = ", ".join(nodes) or "none"
            raise TrainmeshError(
                f"job {status.job} has no node {args.node!r} with an agent; known: {known}"
            )
        if len(nodes) == 1:
            raise TrainmeshError(
                f"{args.node} is the only node of job {status.job}: there is nobody to ping it from"
            )
        return _ping(args, status, store, nodes)


def _ping(args: argparse.Namespace, status: JobStatus, store: Store, nodes: list[str]) -> int:
    with ProbeSession(
        store,
        status.job,
        backend=status.backend,
        nbytes=0,
        seconds=WAIT_S,
        echoes=1,
        total_s=args.count * (WAIT_S + GRACE_S + EVERY_S),
    ) as session:
        session.wait_ready(nodes)
        if args.node in session.problems:
            raise TrainmeshError(f"{args.node}: {session.problems[args.node]}")
        here = machine_id()
        others = [node for node in sorted(session.listeners) if node != args.node]
        if not others:
            raise TrainmeshError(f"no other agent of job {status.job} is ready to ping from")
        source = next((n for n in others if session.listeners[n].machine == here), others[0])
        report = _Report(args.json, status.job, source, args.node)
        listener = session.listeners[args.node]
        report.begin(listener.interface, listener.host)
        try:
            for number in range(args.count):
                if number:
                    time.sleep(EVERY_S)
                [measure] = session.turn([(source, args.node)], WAIT_S)
                report.add(measure)
        finally:
            report.end()
    return 0 if report.answered else 1


class _Report:
    """What has come back so far."""

    def __init__(self, as_json: bool, job: str, src: str, dst: str) -> None:
        self._json = as_json
        self._job = job
        self._src = src
        self._dst = dst
        self._times_s: list[float | None] = []
        self._output = Output()

    @property
    def answered(self) -> list[float]:
        """The round-trip times that are known."""
        return [time_s for time_s in self._times_s if time_s is not None]

    def begin(self, interface: str, host: str) -> None:
        if not self._json:
            self._output.text(
                f"ping {self._dst} ({host}, {interface}) from {self._src}, job {self._job}"
            )

    def add(self, measure: PairMeasure) -> None:
        trips = measure.round_trips
        self._times_s.append(trips.min_s if trips.received else None)
        if self._json:
            return
        number = len(self._times_s)
        if trips.received:
            self._output.text(f"from {self._dst}: seq={number} time={duration(trips.min_s)}")
        else:
            self._output.text(f"nothing from {self._dst}: seq={number} ({measure.problem})")
        sys.stdout.flush()

    def end(self) -> None:
        """The summary; also after Ctrl-C."""
        trips = summary(self.answered, sent=len(self._times_s))
        if self._json:
            fields = {
                "job": self._job,
                "src": self._src,
                "dst": self._dst,
                "rtt_s": self._times_s,
                "round_trips": trips,
            }
            sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
            return
        loss = 1 - trips.received / trips.sent if trips.sent else 0.0
        self._output.text(f"{trips.sent} sent, {trips.received} received, {100 * loss:.0f} % lost")
        if trips.received:
            times = (trips.min_s, trips.mean_s, trips.max_s)
            self._output.text("rtt min/avg/max " + " / ".join(map(duration, times)))


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_COUNT}")
    return int(text)
