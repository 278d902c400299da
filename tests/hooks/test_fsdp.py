"""FSDP2 and HSDP: never changed by being watched, timed like buckets, replicas follow plans."""

import json
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.launchjob import JOBS, LAUNCH, Place, place
from tests.needs import need_streams
from tests.torchjob import run_job
from trainmesh.hooks.fsdp.replicas import replica_groups
from trainmesh.rundir import RunDir, write_atomically
from trainmesh.types import Hint, Note, Plan, RankReport, StepReport
from trainmesh.wire import decode, encode

STEPS = 8
JOB_TIMEOUT_S = 100
"""Below the test's own, so that what the job has said is seen."""
JOB = "fsdp"
MODES = {
    "replicate": (0, 2400),  # a layer's gradients: 24 x 24 + 24 float32
    "shard": (1, 2400),
    "hybrid": (2, 1200),  # a shard of them
    "accumulate": (3, 1200),
    "fp16": (4, 600),
}
"""Module number and bytes of each bucket."""
RING = Plan(algorithm="ring", world_size=2, order=(1, 0))
HINTS = [
    (Plan(algorithm="native", world_size=4, order=(0, 1, 2, 3)), "none"),
    (RING, "bf16"),
    (RING, "none"),
    (Plan(algorithm="sharded", world_size=2, order=(0, 1), shares=(0.25, 0.75)), "none"),
]
"""Plan and codec of epochs 1 to 4; the first two fit no replicas of two ranks."""


class Heard:
    """What the ranks of a job reported; steps by rank and module."""

    def __init__(self) -> None:
        self.steps: dict[tuple[int, int], list[StepReport]] = defaultdict(list)
        self.notes: list[Note] = []
        self.on_note: Callable[[Note], None] = lambda note: None
        self.on_world: Callable[[int], None] = lambda world: None
        self.world = 0

    def take(self, report: RankReport) -> None:
        if report.hello is not None and report.hello.world and not self.world:
            self.world = report.hello.world
            self.on_world(self.world)
        for step in report.steps:
            self.steps[step.rank, step.module].append(step)
        for note in report.notes:
            self.notes.append(note)
            self.on_note(note)


@contextmanager
def agent(folder: RunDir) -> Iterator[Heard]:
    """Listens as a node's agent does; all has been heard at the end."""
    heard, ended = Heard(), threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder.socket))
        listener.settimeout(0.1)

        def listen() -> None:
            while True:
                try:
                    heard.take(decode(listener.recv(1 << 20), RankReport, what="report"))
                except TimeoutError:
                    if ended.is_set():
                        return

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield heard
        finally:
            ended.set()
            thread.join(10)


@pytest.fixture
def here() -> Iterator[Place]:
    need_streams()
    with place() as found:
        yield found


def run(here: Place, out: str, modes: str, world_size: int, **env: str) -> dict[int, Any]:
    """Results by rank and mode."""
    place = here.path / out
    return run_job(
        "fsdp.py", world_size=world_size, out=place, timeout_s=JOB_TIMEOUT_S, MODES=modes, **env
    )


def hooked(here: Place) -> dict[str, str]:
    return {
        "HOOKED": "1",
        "TRAINMESH_RUN_DIR": str(here.path),
        "TRAINMESH_JOB": JOB,
        "TRAINMESH_CADENCE": "2",
    }


@pytest.mark.torch
def test_training_is_bit_equal_and_reductions_are_timed(here: Place) -> None:
    expected = run(here, "plain", ",".join(MODES), 4)
    with agent(RunDir(here.path)) as heard:
        results = run(here, "hooked", ",".join(MODES), 4, **hooked(here))
    assert results == expected
    for (rank, module), steps in heard.steps.items():
        mode, nbytes = {number: (name, size) for name, (number, size) in MODES.items()}[module]
        assert [step.step for step in steps] == list(range(len(steps)))
        assert len(steps) in (STEPS - 1, STEPS)  # the last one may be lost with its model
        losses = results[rank][mode]["losses"][: len(steps)]
        assert [step.loss for step in steps] == pytest.approx(losses)
        for step in steps:
            assert [(b.index, b.nbytes) for b in step.buckets] == [(i, nbytes) for i in range(4)]
            for b in step.buckets:
                assert step.begin_ns <= b.arrival_ns <= b.start_ns <= b.end_ns
    assert len(heard.steps) == 4 * len(MODES)


@pytest.mark.torch
def test_replicas_switch_together_and_refuse_what_does_not_fit(here: Place) -> None:
    folder = RunDir(here.path)
    with agent(folder) as heard:
        deliver(folder, heard)
        results = run(here, "out", "hybrid", 4, UNTIL_EPOCH=str(len(HINTS)), **hooked(here))
    ranks = {rank: result["hybrid"] for rank, result in results.items()}
    assert all(result["epochs"] == ranks[0]["epochs"] for result in ranks.values())
    assert sorted(set(ranks[0]["epochs"])) == [0, 3, 4]
    assert {step.epoch for steps in heard.steps.values() for step in steps} == {0, 3, 4}
    # Ranks 0 and 2 hold the same shard, and so do 1 and 3: bit for bit after every plan.
    assert [ranks[0]["state"], ranks[1]["state"]] == [ranks[2]["state"], ranks[3]["state"]]
    assert ranks[0]["state"] != ranks[1]["state"]
    refused = {
        (note.epoch, note.rank): note.text for note in heard.notes if note.kind == "rejected"
    }
    assert refused.keys() == {(epoch, rank) for epoch in (1, 2) for rank in range(4)}
    assert "plan is for 4 ranks" in refused[1, 0]
    assert "for DDP only" in refused[2, 0]
    # A plan sums the same numbers: two replicas' have one sum, whatever the order.
    expected = run(here, "plain", "hybrid", 4)
    for rank, result in ranks.items():
        assert result["losses"][:STEPS] == expected[rank]["hybrid"]["losses"]


def deliver(folder: RunDir, heard: Heard) -> None:
    """Leave each hint in the run directory once all ranks have answered the one before."""

    def write(epoch: int) -> None:
        plan, codec = HINTS[epoch - 1]
        hint = Hint(
            job=JOB, epoch=epoch, effective_step=0, plan=plan, reason="test", codec=codec,
            world=heard.world,
        )  # fmt: skip
        write_atomically(folder.path / "hint.json", encode(hint))

    def answered(note: Note) -> None:
        if note.kind in ("rejected", "switched"):
            answers[note.epoch] += 1
            if answers[note.epoch] == 4 and note.epoch < len(HINTS):
                write(note.epoch + 1)

    answers: Counter[int] = Counter()
    heard.on_note = answered
    heard.on_world = lambda world: write(1)


@pytest.mark.torch
@pytest.mark.etcd
def test_an_unmodified_script_under_the_launcher(here: Place) -> None:
    expected = run(here, "plain", "shard,hybrid", 2)
    out = here.path / "launched"
    out.mkdir()
    command = [*LAUNCH, "--nproc-per-node", "2", str(JOBS / "fsdp.py")]
    done = here.run(*command, OUT=str(out), MODES="shard,hybrid")
    assert done.returncode == 0, done.stderr
    assert "not active" not in done.stderr
    assert "untouched" not in done.stderr
    for rank in range(2):
        assert json.loads((out / f"{rank}.json").read_text()) == expected[rank]


@pytest.mark.torch
@pytest.mark.etcd
def test_the_coordinator_plans_for_the_replicas(here: Place) -> None:
    """Two replicas of two shards on one node, from the launch to the report."""
    out = here.path / "launched"
    out.mkdir()
    flags = ["--report", str(here.path / "report"), "--plan", "tree", "--nproc-per-node", "4"]
    command = [*LAUNCH, *flags, str(JOBS / "fsdp.py")]
    done = here.run(*command, OUT=str(out), MODES="hybrid", UNTIL_EPOCH="1")
    assert done.returncode == 0, done.stderr
    epochs = [
        json.loads((out / f"{rank}.json").read_text())["hybrid"]["epochs"] for rank in range(4)
    ]
    assert all(one == epochs[0] for one in epochs)
    report = (here.path / "report" / "report.json").read_text()
    assert "2 groups of 2 replicas" in report
    assert "all 4 ranks switched to tree" in report
    analysis = json.loads(report)["run"]
    by_epoch = {bucket["epoch"]: bucket for bucket in analysis["buckets"]}
    assert 1 in by_epoch  # and 0, if the plan came after step 2
    for bucket in by_epoch.values():  # between two replicas: 2 (2 - 1) / 2
        assert bucket["nbytes"] == 1200
        assert bucket["busbw_bytes_per_s"] == pytest.approx(bucket["algbw_bytes_per_s"])


def test_replica_groups_of_a_mesh() -> None:
    mesh = torch.arange(6).reshape(2, 3)
    assert replica_groups(mesh, 0) == ((0, 3), (1, 4), (2, 5))
    assert replica_groups(mesh, 1) == ((0, 1, 2), (3, 4, 5))
    assert replica_groups(torch.arange(4), 0) == ((0, 1, 2, 3),)
