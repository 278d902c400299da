"""The coordinator's decisions, event by event, without clock, store or processes."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from tests.topology.graphs import racks
from trainmesh.coordinator.coordinator import Coordinator, Effects, Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import (
    BucketTiming,
    Hello,
    Hint,
    NodeReport,
    Note,
    Plan,
    RankReport,
    StepReport,
)

WORLD = 4
MS = 1_000_000
INTERLEAVED = racks([0, 2, 1, 3], uplink=1, nic=1, per_rack=2)


def hello(rank: int, pid: int = 100, node: str = "a") -> Hello:
    return Hello(
        rank=rank,
        local_rank=rank,
        world_size=WORLD,
        node_rank=0,
        node=node,
        pid=pid + rank,
        clock="c",
        backend="gloo",
        device="cpu",
    )


def step(rank: int, number: int, epoch: int, ms: float) -> StepReport:
    """Two buckets of 1 MB and 0.5 MB, one after the other, that take ms together."""
    begin = number * 100 * MS
    ends = (begin + int(ms * MS * 2 / 3), begin + int(ms * MS))
    buckets = (
        BucketTiming(0, 1_000_000, begin, begin, ends[0]),
        BucketTiming(1, 500_000, begin, begin, ends[1]),
    )
    end = begin + int((20 + ms) * MS)
    return StepReport(rank, 0, number, epoch, begin, end, 1.5, buckets)


class Job:
    """Feeds one coordinator like a job whose buckets take ``ms`` milliseconds."""

    def __init__(
        self, graph: LinkGraph | None = INTERLEAVED, settings: Settings | None = None
    ) -> None:
        self.coordinator = Coordinator("job", settings or Settings(), graph)
        self.now_s = 1000.0
        self.sequence = 0
        self.number = 0
        self.epoch = 0
        self.hints: list[Hint] = []

    def greet(self, pid: int = 100) -> Effects:
        return self.send(RankReport(hello=hello(rank, pid)) for rank in range(WORLD))

    def send(self, reports: Iterable[RankReport]) -> Effects:
        self.sequence += 1
        report = NodeReport(node="a", sequence=self.sequence, reports=tuple(reports), dropped=0)
        return self.coordinator.report(report, self.now_s)

    def train(self, steps: int, ms: float) -> None:
        for _ in range(steps):
            self.send(
                RankReport(steps=(step(rank, self.number, self.epoch, ms),))
                for rank in range(WORLD)
            )
            self.number += 1
            self.decide()

    def decide(self) -> None:
        self.now_s += 0.1
        effects = self.coordinator.decide(self.now_s)
        if effects.hint is not None:
            self.hints.append(effects.hint)
            self.coordinator.hint_seen(effects.hint, self.now_s)

    def switch(self, ranks: int = WORLD) -> None:
        hint = self.hints[-1]
        self.send(
            RankReport(notes=(Note(
                kind="switched", rank=rank, text=hint.plan.algorithm, step=self.number,
                epoch=hint.epoch,
            ),))
            for rank in range(ranks)
        )  # fmt: skip
        if ranks == WORLD:
            self.epoch = hint.epoch

    def kinds(self) -> list[str]:
        return [event.kind for event in self.coordinator.status(self.now_s).events]


def test_nothing_is_decided_before_all_ranks_are_known_and_enough_is_measured() -> None:
    job = Job()
    job.send([RankReport(hello=hello(0))])
    job.decide()
    job.greet()
    job.train(17, ms=9)
    assert job.hints == []
    job.train(1, ms=9)
    assert len(job.hints) == 1


def test_the_loss_is_that_of_the_newest_step_in_which_it_was_looked_at() -> None:
    job = Job()
    job.greet()
    job.train(1, ms=9)
    short = replace(step(0, 1, 0, ms=9), loss=None, buckets=())
    job.send([RankReport(steps=(short,))])
    assert job.coordinator.status(job.now_s).loss == 1.5
    job.send([RankReport(steps=(replace(step(0, 2, 0, ms=9), loss=None),))])  # not finite
    assert job.coordinator.status(job.now_s).loss is None


def test_a_better_plan_is_published_for_the_steps_to_come_and_stays() -> None:
    job = Job()
    job.greet()
    job.train(20, ms=9)
    [hint] = job.hints
    assert (hint.epoch, hint.job) == (1, "job")
    assert hint.plan.algorithm != "native"
    assert hint.effective_step == 18
    assert hint.plan.efficiency > 0.4
    job.switch()
    job.train(30, ms=5)
    status = job.coordinator.status(job.now_s)
    assert status.epoch == 1
    assert status.plan == hint.plan
    assert status.loss == 1.5
    assert len(job.hints) == 1
    assert job.kinds()[:4] == ["hello", "plan", "switch", "fit"]


def test_a_plan_that_does_harm_is_taken_back_once_and_for_all() -> None:
    job = Job()
    job.greet()
    job.train(20, ms=5)
    job.switch()
    job.train(20, ms=9)
    first, second = job.hints
    assert second.epoch == 2
    assert second.plan.algorithm == "native"
    assert "taken back" in second.reason
    for _ in range(4):
        job.switch()
        job.train(60, ms=5)
    assert "revert" in job.kinds()
    assert first.plan.algorithm not in [hint.plan.algorithm for hint in job.hints[1:]]


def test_a_plan_that_brings_nothing_is_taken_back() -> None:
    job = Job()
    job.greet()
    job.train(20, ms=5)
    job.switch()
    job.train(40, ms=4.95)
    assert [hint.plan.algorithm for hint in job.hints][1:] == ["native"]


def test_native_stays_where_no_graph_is_declared_and_all_links_are_equal() -> None:
    job = Job(graph=None)
    job.greet()
    job.train(100, ms=5)
    assert job.hints == []
    assert "native stays" in job.coordinator.status(job.now_s).events[-1].text


def test_a_forced_plan_is_published_soon_and_never_taken_back() -> None:
    job = Job(graph=None, settings=Settings(only="hierarchical"))
    job.greet()
    job.train(10, ms=5)
    assert job.hints == []  # one host: there are no islands
    job = Job(settings=Settings(only="hierarchical"))
    job.greet()
    job.train(5, ms=5)
    [hint] = job.hints
    assert hint.plan.algorithm == "hierarchical"
    job.switch()
    job.train(40, ms=50)
    assert len(job.hints) == 1


def test_a_switch_counts_when_every_rank_has_made_it() -> None:
    job = Job()
    job.greet()
    job.train(20, ms=9)
    job.switch(ranks=WORLD - 1)
    assert job.coordinator.status(job.now_s).epoch == 0
    assert "switch" not in job.kinds()


def test_a_topology_of_another_size_is_ignored_with_a_warning() -> None:
    job = Job(graph=racks(range(8), uplink=1))
    job.greet()
    job.train(30, ms=5)
    assert job.kinds()[0] == "warning"
    assert job.hints == []


def test_restarted_processes_begin_again_on_native() -> None:
    job = Job()
    job.greet()
    job.train(20, ms=9)
    job.switch()
    job.number, job.epoch = 0, 0
    job.greet(pid=500)
    status = job.coordinator.status(job.now_s)
    assert (status.epoch, status.step) == (0, 0)
    assert "restarted" in " ".join(event.text for event in status.events)
    job.train(40, ms=9)
    assert len(job.hints) == 1


def test_a_coordinator_that_finds_a_hint_continues_its_epochs() -> None:
    job = Job()
    plan = Plan(algorithm="ring", world_size=WORLD, order=(0, 2, 1, 3))
    found = Hint(job="job", epoch=7, effective_step=3, plan=plan, reason="earlier")
    older = Hint(job="job", epoch=6, effective_step=3, plan=plan, reason="old")
    job.coordinator.hint_seen(older, job.now_s)
    job.coordinator.hint_seen(found, job.now_s)
    job.greet()
    job.epoch = 7
    job.hints.append(found)
    job.switch()
    job.train(17, ms=5)
    assert job.hints == [found]
    assert job.coordinator.status(job.now_s).epoch == 7
    # on which links the plan was chosen isn't known here: they are measured before it is changed
    job.train(10, ms=5)
    hint = job.hints[1]
    assert (hint.epoch, hint.plan) == (8, plan)
    assert hint.probe_bytes


def test_a_coordinator_that_comes_late_sees_the_epoch_in_the_steps() -> None:
    job = Job()
    job.greet()
    plan = Plan(algorithm="ring", world_size=WORLD, order=(0, 2, 1, 3))
    found = Hint(job="job", epoch=7, effective_step=3, plan=plan, reason="earlier")
    job.coordinator.hint_seen(found, job.now_s)
    job.epoch = 7
    job.train(5, ms=5)
    status = job.coordinator.status(job.now_s)
    assert (status.epoch, status.plan) == (7, plan)
    assert "switch" in job.kinds()


def test_nothing_was_timed_before_the_first_step() -> None:
    job = Job()
    job.greet()
    assert job.coordinator.status(job.now_s).step_time_s is None
    job.train(1, ms=9)
    assert job.coordinator.status(job.now_s).step_time_s is not None


def test_hints_that_differ_are_said_once_by_whichever_ranks() -> None:
    """Each rank notes it, of the hint that it holds: some hold the one before."""

    def differ(step: int, *epochs: int) -> None:
        job.send(
            RankReport(notes=(Note(kind="mismatch", rank=r, text="differ", step=step, epoch=e),))
            for r, e in enumerate(epochs)
        )

    job = Job()
    job.greet()
    differ(16, 2, 2, 1, 1)
    differ(32, 2, 2, 2, 2)
    differ(48, 3, 3, 3, 3)
    events = job.coordinator.status(job.now_s).events
    told = [(event.step, event.text) for event in events if event.kind == "mismatch"]
    assert told == [(16, "differ"), (48, "differ")]


def test_nothing_is_planned_for_a_hook_of_the_scripts_own() -> None:
    """No rank would follow it; processes that are started again may have no hook."""
    job = Job()
    job.greet()
    job.send([RankReport(notes=(Note(kind="hook_kept", rank=0, text="mine", step=0, epoch=0),))])
    job.train(60, ms=9)
    assert job.hints == []
    job.number = 0
    job.greet(pid=900)
    job.train(60, ms=9)
    assert len(job.hints) == 1


def test_a_rejected_plan_is_not_proposed_again() -> None:
    job = Job()
    job.greet()
    job.train(20, ms=9)
    note = Note(kind="rejected", rank=2, text="can't be carried out", epoch=1)
    job.send([RankReport(notes=(note,))])
    job.train(60, ms=9)
    assert job.hints[0].plan.algorithm not in [hint.plan.algorithm for hint in job.hints[1:]]
    assert "rejected" in job.kinds()
    assert job.coordinator.status(job.now_s).epoch == 0


@pytest.mark.parametrize("world", [1, 2])
def test_small_jobs_are_measured_and_left_alone(world: int) -> None:
    coordinator = Coordinator("job", Settings(), None)
    for rank in range(world):
        own = Hello(
            rank=rank, local_rank=rank, world_size=world, node_rank=0, node="a", pid=rank,
            clock="c", backend="gloo", device="cpu",
        )  # fmt: skip
        report = NodeReport(node="a", sequence=rank, reports=(RankReport(hello=own),), dropped=0)
        coordinator.report(report, 0.0)
    for number in range(40):
        steps = tuple(RankReport(steps=(step(rank, number, 0, 5),)) for rank in range(world))
        coordinator.report(NodeReport(node="a", sequence=99, reports=steps, dropped=0), 0.0)
        assert coordinator.decide(0.0).hint is None
    assert coordinator.status(0.0).world_size == world
