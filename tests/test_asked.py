"""What the user asked for: had from the first steps; or said why not, in status and at the end."""

from pathlib import Path
from typing import TypedDict, Unpack

import pytest
from msgspec.structs import replace

from tests.launcher.records import hello, report
from tests.topology.graphs import racks
from trainmesh.coordinator.coordinator import Coordinator, Effects
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.launcher.run.asked import unmet_lines
from trainmesh.launcher.run.settings import LaunchSettings
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Collective, Hello, NodeReport, Note, PairTime, RankReport, StepReport
from trainmesh.wire import encode

TWO_RACKS = racks([0, 2, 1, 3], uplink=1, nic=1, per_rack=2)


class Asked(TypedDict, total=False):
    only: str
    compression: str
    fusion_bytes: int


class Job:
    """The coordinator of a job in which ``settings`` were asked for."""

    def __init__(self, declared: LinkGraph | None = None, **settings: Unpack[Asked]) -> None:
        self.coordinator = Coordinator("job", Settings(**settings), declared)
        self.lines: list[object] = []
        self._sequence = 0

    def send(self, *reports: RankReport) -> None:
        self._sequence += 1
        node = NodeReport(node="a", sequence=self._sequence, reports=reports, dropped=0)
        self._take(self.coordinator.report(node, 1000.0))

    def greet(self, *hellos: Hello) -> None:
        self.send(*(RankReport(hello=hello) for hello in hellos))

    def train(self, steps: range, world_size: int = 4) -> None:
        told: list[StepReport] = [
            replace(report(r, s), epoch=0) for s in steps for r in range(world_size)
        ]
        self.send(*(RankReport(steps=(step,)) for step in told))

    def note(self, kind: str, text: str, *, epoch: int = 0, step: int = 0, ranks: int = 4) -> None:
        notes = (Note(kind=kind, rank=r, text=text, epoch=epoch, step=step) for r in range(ranks))
        self.send(*(RankReport(notes=(note,)) for note in notes))

    def decide(self) -> Effects:
        effects = self.coordinator.decide(1001.0)
        self._take(effects)
        if effects.hint is not None:
            self._take(self.coordinator.hint_seen(effects.hint, 1001.0))
        return effects

    def end(self) -> list[str]:
        """What is said when the job is over."""
        before = len(self.texts("warning"))
        self._take(self.coordinator.end(1002.0))
        return self.texts("warning")[before:]

    def texts(self, kind: str) -> list[str]:
        events = self.coordinator.status(1002.0).events
        return [event.text for event in events if event.kind == kind]

    def _take(self, effects: Effects) -> None:
        self.lines += [line.asked for line in effects.lines if line.asked is not None]


def four(**fields: object) -> list[Hello]:
    return [replace(hello(rank), **fields) for rank in range(4)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"only": "ring"}, "ring"),
        ({"only": "sharded", "compression": "bf16"}, "sharded, bf16"),
        ({"only": "tree", "fusion_bytes": 8_000_000}, "tree, fused to 8.00 MB"),
        ({"compression": "powersgd:2"}, "native, powersgd:2"),
    ],
)
def test_what_was_asked_for_needs_no_step(settings: Asked, words: str) -> None:
    """It is published as soon as the ranks are complete, before the coordinator's next turn."""
    job = Job(**settings)
    job.greet(*four()[:3])
    assert not job.coordinator.is_urgent()
    assert job.decide().hint is None
    job.greet(*four())
    assert job.coordinator.is_urgent()
    assert not job.coordinator.is_urgent()
    hint = job.decide().hint
    assert hint is not None
    assert (hint.epoch, hint.effective_step) == (1, 1)
    assert job.decide().hint is None
    job.note("switched", "", epoch=1, step=2)
    status = job.coordinator.status(0.0)
    assert {item.since_step for item in status.asked} == {2}
    assert job.texts("switch") == [f"step 2: all 4 ranks switched to {words} (epoch 1)"]
    assert job.lines[-1] == status.asked
    assert job.end() == []


def test_unknown_links_are_measured_after_what_was_asked_for() -> None:
    job = Job(only="sharded")
    job.greet(*(hello(rank, node=f"n{rank}") for rank in range(4)))
    hint = job.decide().hint
    assert hint is not None
    assert (hint.plan.algorithm, hint.probe_bytes) == ("sharded", 0)


@pytest.mark.parametrize("settings", [{}, {"only": "native"}, {"compression": "auto"}])
def test_what_a_job_begins_with_is_not_waited_for(settings: Asked) -> None:
    job = Job(**settings)
    job.greet(*four())
    assert job.decide().hint is None
    assert {item.since_step for item in job.coordinator.status(0.0).asked} <= {0}
    assert job.end() == []


NO_RING = "--plan ring was asked for and can't run here: it takes 3 ranks or more, not 2"


@pytest.mark.parametrize(
    ("settings", "hellos", "words"),
    [
        ({"only": "ring"}, [hello(rank, world_size=2) for rank in range(2)], [NO_RING + ": with"]),
        (
            {"only": "hierarchical"},
            four(node="one"),
            ["--plan hierarchical was asked for and can't run here: the links divide"],
        ),
        (
            {"only": "ring", "compression": "bf16"},
            four(collective=Collective.REDUCE_SCATTER),
            [
                f"{name} was asked for and can't run here: this job's gradients are not all-reduced"
                for name in ("--plan ring", "--compression bf16")
            ],
        ),
        (
            {"compression": "bf16"},
            [hello(0, world_size=1)],
            ["--compression bf16 was asked for and can't run"],
        ),
    ],
)
def test_what_can_t_be_had_is_said_once(
    settings: Asked, hellos: list[Hello], words: list[str]
) -> None:
    job = Job(**settings)
    job.greet(*hellos)
    for _ in range(3):
        assert job.decide().hint is None
    told = job.texts("warning")
    assert len(told) == len(words)
    for text, begin in zip(told, words, strict=True):
        assert text.startswith(begin)
    assert job.end() == []
    assert all(item.refusal for item in job.coordinator.status(0.0).asked)


def test_fusion_and_codecs_are_not_for_replicas_and_that_is_said() -> None:
    halves = [four(replicas=(rank % 2, rank % 2 + 2))[rank] for rank in range(4)]
    job = Job(only="tree", compression="bf16", fusion_bytes=8_000_000)
    job.greet(*halves)
    hint = job.decide().hint
    assert hint is not None
    assert (hint.plan.algorithm, hint.fusion_bytes, hint.codec) == ("tree", 0, "none")
    assert job.texts("warning") == [
        "--fusion 8.00 MB was asked for and can't run here: fusion is for DDP, and this job is "
        "FSDP2's",
        "--compression bf16 was asked for and can't run here: compression is for DDP, and this job "
        "is FSDP2's",
    ]


def test_a_job_that_ends_too_soon_says_so() -> None:
    job = Job(only="ring", compression="bf16")
    job.greet(*four())
    job.decide()
    job.train(range(7))
    assert job.end() == [
        f"{name} was asked for but never in force: the job ended after 7 steps"
        for name in ("--plan ring", "--compression bf16")
    ]


def test_a_job_in_which_no_rank_came_says_so_too() -> None:
    ended = "--plan ring was asked for but never in force: the job ended after 0 steps"
    assert Job(only="ring").end() == [ended]


def test_why_the_ranks_never_had_it_is_said() -> None:
    for kind, text, words in (
        ("hook_kept", "their_hook", "the script's own communication hook their_hook is kept"),
        ("unplanned", "a DDP module is over a part", "a DDP module is over a part"),
        ("rejected", "codec bf16: no room", "codec bf16: no room"),
    ):
        job = Job(compression="bf16")
        job.greet(*four())
        job.decide()
        job.note(kind, text, epoch=1)
        assert job.end() == [f"--compression bf16 was asked for and can't run here: {words}"]


def test_links_that_are_measured_may_allow_what_was_refused() -> None:
    """Four hosts, nothing declared: as long as all are taken as equal there are no islands."""
    job = Job(only="hierarchical")
    job.greet(*(hello(rank, node=f"n{rank}") for rank in range(4)))
    assert job.decide().hint is None
    assert len(job.texts("warning")) == 1
    job.train(range(20))
    probe = job.decide().hint
    assert probe is not None
    assert probe.probe_bytes > 0
    job.note("switched", "native", epoch=probe.epoch, step=20)
    slow = 10 * probe.probe_bytes / 1e9
    pairs = [
        PairTime(probe.epoch, 0, a, b, probe.probe_bytes, slow if 3 in (a, b) else slow / 10, 1e-5)
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    job.send(RankReport(pairs=tuple(pairs)))
    found = [hint for hint in (job.decide().hint for _ in range(3)) if hint is not None]
    assert [hint.plan.algorithm for hint in found] == ["hierarchical"]
    assert job.coordinator.status(0.0).asked[0].refusal == ""


def test_after_a_restart_it_is_asked_for_again() -> None:
    job = Job(TWO_RACKS, only="ring")
    job.greet(*four())
    job.decide()
    job.note("switched", "ring", epoch=1, step=2)
    assert job.end() == []
    job.greet(*(hello(rank, pid=900 + rank) for rank in range(4)))
    [item] = job.coordinator.status(0.0).asked
    assert item.since_step is None
    job.train(range(7))
    assert job.end() == [
        "--plan ring was in force earlier, but was not seen in force again: the job ended after 7 "
        "steps more"
    ]


def test_what_an_elastic_job_had_is_not_called_never() -> None:
    """From four ranks to two, where a ring can't be had."""
    job = Job(None, only="ring")
    job.greet(*four())
    job.decide()
    job.note("switched", "ring", epoch=1, step=2)
    job.greet(*(hello(rank, world_size=2, pid=900 + rank) for rank in range(2)))
    [said] = job.texts("warning")
    assert said.startswith("--plan ring was in force earlier and can't run any more: ")
    assert job.end() == []
    assert [item.was_in_force for item in job.coordinator.status(0.0).asked] == [True]


@pytest.mark.parametrize("told", ["a note of one rank", "a step of one rank"])
def test_what_one_rank_says_is_so_of_all(told: str) -> None:
    """They have voted for it; the words of the others may come after the end."""
    job = Job(only="ring")
    job.greet(*four())
    job.decide()
    assert job.end() != []
    if told.startswith("a note"):
        job.note("switched", "ring", epoch=1, step=2, ranks=1)
    else:
        job.send(RankReport(steps=(replace(report(3, 2), epoch=1),)))
    assert job.end() == []
    assert [item.since_step for item in job.coordinator.status(0.0).asked] == [2]


def test_a_coordinator_that_is_started_again_knows_what_was_in_force() -> None:
    first = Job(only="ring", compression="bf16")
    first.greet(*four())
    first.decide()
    first.note("switched", "ring", epoch=1, step=2)
    before = first.coordinator.status(0.0)
    again = Coordinator("job", Settings(only="ring"), None, before.events, before.asked)
    [item] = again.status(0.0).asked
    assert (item.since_step, item.was_in_force) == (None, True)
    texts = [line.event.text for line in again.end(0.0).lines if line.event is not None]
    assert len(texts) == 1
    assert "never" not in texts[0]


def test_the_launcher_does_not_say_never_of_a_job_whose_end_nobody_saw(tmp_path: Path) -> None:
    settings = LaunchSettings(
        job="job", node="a", etcd=None, insecure_etcd=False, topology=None, plan="ring",
        margin=0.05, cadence=16, fusion="auto", compression="none",
    )  # fmt: skip
    job = Job(only="ring")
    job.greet(*four())
    path = tmp_path / "status.json"
    for is_last, words in ((False, "was not in force when the coordinator"), (True, "but never")):
        path.write_bytes(encode(job.coordinator.status(0.0, is_last=is_last)))
        [said] = unmet_lines(settings, path)
        assert words in said
        assert ("never" in said) is is_last
