"""Somebody sets the wall clock under a running coordinator and agent: everything goes on.

Real processes on a real etcd; the ranks are simulated, and the clock that is set is what the
processes, gRPC included, are told of it (``stepped_clock.c``).
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.launchjob import ROOT, Place, place, wait_for
from tests.needs import need
from trainmesh.rundir import RunDir
from trainmesh.store.base import claim_prefix, job_prefix
from trainmesh.store.etcd import EtcdStore, connect
from trainmesh.types import (
    BucketTiming,
    Hello,
    Hint,
    JobStatus,
    NodeReport,
    Note,
    RankReport,
    StepReport,
)
from trainmesh.wire import decode, encode

HOUR_S = 3600
WORLD = 3
"""Nodes: of more than two, the links are probed before anything is planned."""
MS = 1_000_000


class SteppedJob:
    """A coordinator, an agent and ranks that take up each hint and measure no probe."""

    def __init__(self, here: Place, store: EtcdStore, etcd: str, job: str) -> None:
        clock = here.path / "stepped_clock.so"
        source = ROOT / "tests" / "stepped_clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", clock, source], check=True)
        self.store, self.job, self.prefix = store, job, job_prefix(job)
        self.run = RunDir(here.path / "run")
        self.run.path.mkdir()
        self._offset = here.path / "offset"
        self._report = 0
        self._step = 0
        self._epoch = 0
        self.world = 1
        self.processes = [
            here.start(
                sys.executable,
                "-m",
                f"trainmesh.{name}.process",
                LD_PRELOAD=str(clock),
                STEPPED_CLOCK=str(self._offset),
                TRAINMESH_RUN_DIR=str(self.run.path),
                TRAINMESH_JOB=job,
                TRAINMESH_NODE="n0",
                TRAINMESH_ETCD=etcd,
            )
            for name in ("agent", "coordinator")
        ]

    def set_clock(self, off_s: int) -> None:
        """The processes' wall clock is ``off_s`` ahead from now on."""
        part = self._offset.with_suffix(".part")
        part.write_text(str(off_s))
        part.rename(self._offset)

    def until(self, what: Callable[[], object]) -> None:
        """Train until ``what`` is true."""

        def look() -> object:
            self.train()
            time.sleep(0.1)
            return what()

        wait_for(look, timeout_s=90)

    def train(self) -> None:
        """Four steps of all ranks, and what they say of a hint that they take up."""
        notes: tuple[Note, ...] = ()
        hint = self.hint()
        if hint is not None and hint.world == self.world and hint.epoch > self._epoch:
            self._epoch, self._step = hint.epoch, max(self._step, hint.effective_step)
            notes = tuple(
                Note(kind="switched", rank=rank, text="native", step=self._step, epoch=hint.epoch)
                for rank in range(WORLD)
            )
        reports = [RankReport(notes=(note,)) for note in notes]
        for rank in range(WORLD):
            steps = tuple(self._measured(rank, self._step + more) for more in range(4))
            reports.append(RankReport(hello=self._hello(rank), steps=steps))
        self._step += 4
        self._report += 1
        report = NodeReport(node="n1", sequence=self._report, reports=tuple(reports), dropped=0)
        self.store.put(f"{self.prefix}reports/n1", encode(report))

    def restart(self) -> None:
        """The ranks begin again, as after torchrun's restart."""
        self.world += 1
        self._step = self._epoch = 0

    def status(self) -> JobStatus | None:
        entry = self.store.get(f"{self.prefix}status")
        return decode(entry.value, JobStatus, what="status") if entry is not None else None

    def updated_unix_s(self) -> float:
        status = self.status()
        assert status is not None
        return status.updated_unix_s

    def hint(self) -> Hint | None:
        entry = self.store.get(f"{self.prefix}hint")
        return decode(entry.value, Hint, what="hint") if entry is not None else None

    def told(self, text: str) -> bool:
        status = self.status()
        return status is not None and any(text in event.text for event in status.events)

    def holds_its_leases(self) -> bool:
        """Whether all is there that lives by a lease: the claim, the leadership, the agent."""
        leased = (claim_prefix(self.job), f"{self.prefix}leader/", f"{self.prefix}agents/n0")
        return all(self.store.list(prefix)[0] for prefix in leased)

    def _hello(self, rank: int) -> Hello:
        return Hello(
            rank=rank, local_rank=0, world_size=WORLD, node_rank=rank, node=f"n{rank}",
            pid=10 * self.world + rank, clock=f"c{rank}", backend="gloo", device="cpu",
            world=self.world,
        )  # fmt: skip

    def _measured(self, rank: int, number: int) -> StepReport:
        begin = number * 30 * MS
        bucket = BucketTiming(0, 10 * MS, begin, begin, begin + 9 * MS)
        return StepReport(rank, 0, number, self._epoch, begin, begin + 30 * MS, None, (bucket,))


@contextmanager
def stepped_job(etcd: str, job: str) -> Iterator[SteppedJob]:
    store = connect(etcd, insecure=False)
    try:
        with place() as here:
            started = SteppedJob(here, store, etcd, job)
            try:
                yield started
            finally:
                for process in started.processes:
                    process.terminate()
                for process in started.processes:
                    process.communicate(timeout=30)
    finally:
        store.close()


@pytest.mark.etcd
@pytest.mark.timeout(300)
def test_a_wall_clock_that_is_set_back_and_forth_changes_no_decision(etcd_url: str) -> None:
    need("a C compiler")
    with stepped_job(etcd_url, "clock-steps") as job:
        job.until(lambda: job.told("3 ranks on n0, n1, n2"))
        job.until(lambda: (hint := job.hint()) and hint.probe_bytes)
        for off_s in (-HOUR_S, 0):
            node = f"left{off_s}"
            before_s = job.updated_unix_s()
            job.store.put(f"{job.prefix}agents/{node}", b"{}")
            job.until(job.run.status_time.exists)
            job.set_clock(off_s)
            job.store.delete(f"{job.prefix}agents/{node}")
            job.until(partial(job.told, f"the agent of {node} is gone"))
            # The reports of the probe never come.
            job.until(lambda: job.told("no rank has reported what it measured"))
            job.restart()
            job.until(lambda: (hint := job.hint()) and hint.world == job.world)
            assert abs(job.updated_unix_s() - before_s) > HOUR_S / 2  # the step was felt
            job.until(job.holds_its_leases)
            assert 0 <= time.monotonic() - float(job.run.status_time.read_bytes()) < HOUR_S
