"""The coordinator's process around a store that loses things: what it stores again, and says."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.launcher.records import CHOICE, FIT, graph
from tests.launchjob import wait_for
from trainmesh.agent.process import AgentSession, Inbox
from trainmesh.coordinator import process as server
from trainmesh.coordinator.coordinator import Coordinator, Effects
from trainmesh.coordinator.process import CoordinatorProcess, Refusals
from trainmesh.coordinator.record import RecordWriter
from trainmesh.errors import StoreError
from trainmesh.job_settings import JobSettings
from trainmesh.launcher.report.run_sample import collect
from trainmesh.process import ControlEnvironment, Stop
from trainmesh.process_health import HealthReporter
from trainmesh.rundir import RunDir
from trainmesh.store.base import Change, Entry, Store, job_prefix
from trainmesh.store.claim import new_claim
from trainmesh.store.memory import MemoryStore
from trainmesh.types import (
    BucketTiming,
    Event,
    Hello,
    Hint,
    JobStatus,
    LinkOrigin,
    NodeReport,
    Note,
    Plan,
    RankReport,
    RecordLine,
    StepReport,
)
from trainmesh.wire import decode, encode

JOB = "job"
PREFIX = job_prefix(JOB)
MS = 1_000_000


class Ranks:
    """Two ranks that report steps in which nothing ever changes."""

    def __init__(self, store: Store, world: int, epoch: int = 0) -> None:
        self.store, self.world, self.epoch = store, world, epoch
        self.sequence = world * 1000
        self.number = 0

    def report(self) -> None:
        reports = []
        for rank in range(2):
            hello = Hello(
                rank=rank, local_rank=rank, world_size=2, node_rank=0, node="n", pid=rank + 1,
                clock="c", backend="gloo", device="cpu", world=self.world,
            )  # fmt: skip
            steps = tuple(self._step(rank, self.number + i) for i in range(4))
            reports.append(RankReport(hello=hello, steps=steps))
        self.number += 4
        self.sequence += 1
        value = NodeReport(node="n", sequence=self.sequence, reports=tuple(reports), dropped=0)
        self.store.put(f"{PREFIX}reports/n", encode(value))

    def _step(self, rank: int, number: int) -> StepReport:
        begin = number * 30 * MS
        buckets = (
            BucketTiming(0, 10 * MS, begin, begin, begin + 6 * MS),
            BucketTiming(1, 5 * MS, begin, begin, begin + 9 * MS),
        )
        return StepReport(rank, 0, number, self.epoch, begin, begin + 30 * MS, None, buckets)

    def until(self, what: Callable[[], Hint | None]) -> Hint:
        """Report until ``what`` gives a hint."""

        def look() -> Hint | None:
            self.report()
            return what()

        found = wait_for(look)
        assert found is not None
        return found


def hint_of(store: Store) -> Hint | None:
    entry = store.get(f"{PREFIX}hint")
    try:
        return decode(entry.value, Hint, what="hint") if entry is not None else None
    except Exception:
        return None


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CoordinatorProcess]:
    monkeypatch.setattr(server, "TICK_S", 0.02)
    monkeypatch.setattr(server, "LOOK_AGAIN_S", 0.1)
    environment = ControlEnvironment(
        run=RunDir(tmp_path), job=JOB, node="n", etcd="", insecure_etcd=False, topology=None,
        settings=JobSettings(only="native", fusion_bytes=8 * MS),
        claim=new_claim("job", None),
    )  # fmt: skip
    with RecordWriter(tmp_path / "record.jsonl", HealthReporter(-1)) as record:
        yield CoordinatorProcess(environment, record)


@contextmanager
def serving(shell: CoordinatorProcess, store: Store) -> Iterator[list[StoreError]]:
    """Sessions one after the other, as long as they fail."""
    stop = Stop()
    errors: list[StoreError] = []

    def serve() -> None:
        while not stop.is_set():
            try:
                shell.session(store, stop)
            except StoreError as error:
                errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield errors
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


GARBAGE = {
    "deleted": None,
    "no JSON": b"\xff\x00",
    "another type": b'{"node": "n"}',
    "a list": b"[]",
    "an impossible plan": encode(
        Hint(
            job=JOB, epoch=3, effective_step=0, world=7, reason="",
            plan=Plan(algorithm="ring", world_size=2, order=(0, 0)),
        )
    ),
    "of another job": encode(
        Hint(
            job="other", epoch=3, effective_step=0, world=7, reason="",
            plan=Plan(algorithm="native", world_size=2, order=(0, 1)),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_done_to_the_hints_key_is_mended(shell: CoordinatorProcess, name: str) -> None:
    store = MemoryStore()
    ranks = Ranks(store, world=7)
    with serving(shell, store) as errors:
        first = ranks.until(lambda: hint_of(store))
        assert (first.world, first.fusion_bytes) == (7, 8 * MS)
        value = GARBAGE[name]
        if value is None:
            store.delete(f"{PREFIX}hint")
        else:
            store.put(f"{PREFIX}hint", value)
        assert ranks.until(lambda: hint_of(store) if hint_of(store) == first else None)
    assert errors == []


def test_a_key_of_another_start_is_replaced_at_once(shell: CoordinatorProcess) -> None:
    store = MemoryStore()
    ranks = Ranks(store, world=7)
    stale = Hint(
        job=JOB, epoch=41, effective_step=100_000, world=3, reason="",
        plan=Plan(algorithm="native", world_size=2, order=(0, 1)),
    )  # fmt: skip
    store.put(f"{PREFIX}hint", encode(stale))
    with serving(shell, store):
        hint = ranks.until(lambda: hint_of(store) if hint_of(store) != stale else None)
        assert (hint.world, hint.epoch) == (7, 42)
        assert hint.effective_step < 100_000


def test_an_emptied_store_is_filled_again(shell: CoordinatorProcess) -> None:
    """``etcdctl del "" --prefix``: leader, status, graph and hint are gone, the leases live."""
    store = MemoryStore()
    ranks = Ranks(store, world=7)
    with serving(shell, store) as errors:
        first = ranks.until(lambda: hint_of(store))
        store.delete("")
        assert ranks.until(lambda: hint_of(store)) == first
        wait_for(lambda: store.get(f"{PREFIX}status") and store.get(f"{PREFIX}graph"))
    assert all("another coordinator leads now" in str(error) for error in errors)


def test_a_new_store_of_lower_revisions_is_filled_again(shell: CoordinatorProcess) -> None:
    """Emptied on disk, with the coordinator alive; then with a new one, too."""
    old, new = MemoryStore(), MemoryStore()
    ranks = Ranks(old, world=7)
    with serving(shell, old):
        first = ranks.until(lambda: hint_of(old))
        for _ in range(50):
            ranks.report()
    ranks.store = new
    with serving(shell, new):
        assert ranks.until(lambda: hint_of(new)) == first


def test_a_new_coordinator_on_an_empty_store_is_above_the_ranks_epoch(
    shell: CoordinatorProcess,
) -> None:
    store = MemoryStore()
    ranks = Ranks(store, world=7, epoch=33)
    with serving(shell, store):
        hint = ranks.until(lambda: hint_of(store))
    assert (hint.epoch, hint.world) == (34, 7)


def test_a_store_that_goes_back_under_a_session_ends_it(shell: CoordinatorProcess) -> None:
    shell._see_revision(10)
    with pytest.raises(StoreError, match="went back from revision 10 to 4"):
        shell._see_revision(4)


def test_who_keeps_writing_the_key_is_named_once(
    shell: CoordinatorProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    class Contested(MemoryStore):
        """Somebody writes the hint just before each compare-and-swap."""

        def cas(
            self, key: str, value: bytes, *, expected_revision: int, fence: Entry | None = None
        ) -> int | None:
            self.put(key, b"mine")
            return super().cas(key, value, expected_revision=expected_revision, fence=fence)

    store = Contested()
    ranks = Ranks(store, world=7)
    with serving(shell, store) as errors:

        def said() -> list[str]:
            entry = store.get(f"{PREFIX}status")
            status = decode(entry.value, JobStatus, what="status") if entry else None
            events = status.events if status is not None else ()
            return [one.text for one in events if "by somebody else" in one.text]

        def look() -> list[str]:
            ranks.report()
            return said()

        assert len(wait_for(look)) == 1
        for _ in range(10):
            ranks.report()
        assert len(said()) == 1
    assert errors == []
    assert capfd.readouterr().err.count("by somebody else") == 1


def test_refused_writes_are_tried_again_later_and_later() -> None:
    refused, now_s, tries = Refusals(), 100.0, []
    while now_s < 400:
        if refused.may_try(now_s):
            tries.append(now_s)
            refused.another(now_s)
        now_s += 0.5
    gaps = [after - before for before, after in zip(tries, tries[1:], strict=False)]
    assert gaps == sorted(gaps)
    assert 0.5 <= gaps[0] <= 1
    assert gaps[-1] == server.MAX_BACKOFF_S
    refused.over()
    assert refused.may_try(now_s)


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_an_agent_started_after_the_clock_was_set_is_heard(
    shell: CoordinatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """Its reports count from 1 again, and nothing of them is a date."""
    store, shown_s = MemoryStore(), [1_700_000_000.0]
    monkeypatch.setattr(time, "time", lambda: shown_s[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(shown_s[0] * 1e9))
    environment = shell._environment
    coordinator = shell._begin(store)
    for number in range(3):
        inbox = Inbox()
        agent = AgentSession(environment, inbox, HealthReporter(-1))
        for step in range(2):
            inbox.put(RankReport(notes=(Note(kind="warning", rank=0, text=f"{number}.{step}"),)))
            agent._publish(store)
            entry = store.get(f"{PREFIX}reports/n")
            assert entry is not None
            for _ in range(2):  # a listing repeats what the watch has brought
                shell._apply(Change(entry.key, entry.value, entry.mod_revision), coordinator)
        shown_s[0] += step_s
    said = [event.text for event in coordinator.status(0.0).events if event.kind == "warning"]
    assert said == [f"rank 0: {number}.{step}" for number in range(3) for step in range(2)]


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_decisions_do_not_look_at_a_clock_that_can_be_set(
    shell: CoordinatorProcess, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """It is set again and again while the coordinator decides: its own time goes on."""
    times: list[float] = []
    decide, real = Coordinator.decide, time.time

    def noted(self: Coordinator, now_s: float) -> Effects:
        times.append(now_s)
        shown = len(times) * step_s
        monkeypatch.setattr(time, "time", lambda: real() + shown)
        return decide(self, now_s)

    monkeypatch.setattr(Coordinator, "decide", noted)
    store = MemoryStore()
    with serving(shell, store):
        Ranks(store, world=7).until(lambda: hint_of(store))
        wait_for(lambda: len(times) > 3)
    assert times == sorted(times)
    assert times[-1] - times[0] < abs(step_s)


def test_a_follower_s_record_has_what_the_leader_decides(
    shell: CoordinatorProcess, tmp_path: Path
) -> None:
    """Each node writes a report of the job: what was compared there is compared by the leader."""
    store = MemoryStore()
    coordinator = shell._begin(store)
    plan = Event(unix_s=1.0, step=9, kind="plan", text="native stays: no plan is faster")
    own = coordinator.log("hello", "2 ranks on a, b with gloo", 0.0).lines[0].event
    assert own is not None
    status = JobStatus(
        job=JOB, updated_unix_s=1.0, world_size=2, choice=CHOICE, fits=(FIT,),
        links_from=LinkOrigin.PROBES, events=(replace(own, unix_s=77.0), plan),
    )  # fmt: skip
    for _ in range(2):
        for name, value in (("graph", encode(graph())), ("status", encode(status))):
            key = f"{PREFIX}{name}"
            shell._apply(Change(key, value, store.put(key, value)), coordinator)
    sample = collect(
        decode(line, RecordLine, what="record")
        for line in (tmp_path / "record.jsonl").read_bytes().splitlines()
    )
    assert sample.choice == CHOICE
    assert sample.graph == graph()
    assert sample.origin is LinkOrigin.PROBES
    assert sample.events == [plan]
    assert sample.lines == 5
    told = coordinator.status(0.0)
    assert (told.choice, told.fits, told.events) == (CHOICE, (FIT,), (own, plan))
