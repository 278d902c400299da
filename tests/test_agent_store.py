"""The agent around a store that refuses, forgets or goes back: no report and no hint is lost."""

import threading
from functools import partial
from pathlib import Path

import pytest

import trainmesh.agent.process as agent_module
from tests.launchjob import wait_for
from trainmesh.agent.process import MAX_WAITING_REPORTS, AgentSession, Inbox
from trainmesh.errors import StoreError
from trainmesh.job_settings import JobSettings
from trainmesh.process import ControlEnvironment, Stop
from trainmesh.process_health import HealthReporter
from trainmesh.rundir import RunDir
from trainmesh.store.base import Change, Entry, Lease, Watch, WatchCallback, job_prefix
from trainmesh.store.claim import new_claim
from trainmesh.store.memory import MemoryStore
from trainmesh.types import Hint, NodeReport, Note, Plan, RankReport
from trainmesh.wire import decode, encode

JOB = "job"
PREFIX = job_prefix(JOB)


def uplink(path: Path, inbox: Inbox) -> AgentSession:
    environment = ControlEnvironment(
        run=RunDir(path), job=JOB, node="n", etcd="http://127.0.0.1:1", insecure_etcd=False,
        topology=None, settings=JobSettings(),
        claim=new_claim(JOB, None),
    )  # fmt: skip
    return AgentSession(environment, inbox, HealthReporter(-1))


def report(number: int) -> RankReport:
    return RankReport(notes=(Note(kind="warning", rank=0, text=str(number)),))


def hint(epoch: int) -> Hint:
    return Hint(
        job=JOB, epoch=epoch, effective_step=0, world=7, reason="",
        plan=Plan(algorithm="native", world_size=2, order=(0, 1)),
    )  # fmt: skip


def holds(file: Path, value: bytes) -> bool:
    return file.exists() and file.read_bytes() == value


class Refusing(MemoryStore):
    refuses = True

    def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        if self.refuses:
            raise StoreError("database space exceeded")
        return super().put(key, value, lease)


def test_reports_that_the_store_refuses_are_sent_later_in_their_order(tmp_path: Path) -> None:
    inbox, store = Inbox(), Refusing()
    agent = uplink(tmp_path, inbox)
    for number in range(3):
        inbox.put(report(number))
    for _ in range(2):
        try:
            agent._publish(store)
        except StoreError:
            continue
        raise AssertionError("the store had refused")
    inbox.put(report(3))
    store.refuses = False
    agent._publish(store)
    entry = store.get(f"{PREFIX}reports/n")
    assert entry is not None
    sent = decode(entry.value, NodeReport, what="report")
    assert [one.notes[0].text for one in sent.reports] == ["0", "1", "2", "3"]
    assert sent.dropped == 0


def test_what_is_put_back_is_bounded_and_counted() -> None:
    inbox = Inbox()
    for number in range(MAX_WAITING_REPORTS - 1):
        inbox.put(report(number))
    inbox.put_back([report(-2), report(-1)], 5)
    reports, dropped = inbox.take()
    assert len(reports) == MAX_WAITING_REPORTS
    assert reports[0] == report(-1)
    assert dropped == 6


class Deaf(MemoryStore):
    """Its watches tell nothing."""

    looks = 0

    def get(self, key: str) -> Entry | None:
        self.looks += key.endswith("hint")
        return super().get(key)

    def watch(self, prefix: str, callback: WatchCallback, *, start_revision: int = 0) -> Watch:
        return super().watch(prefix, lambda changes: None, start_revision=start_revision)


def test_a_hint_of_which_the_watch_tells_nothing_comes_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks must hold the same one: a single agent that is behind keeps it from all."""
    monkeypatch.setattr(agent_module, "LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(agent_module, "PUBLISH_EVERY_S", 0.02)
    inbox, store, stop = Inbox(), Deaf(), Stop()
    inbox.closed.set()
    file = RunDir(tmp_path).hint
    RunDir(tmp_path).socket.touch()
    thread = threading.Thread(target=uplink(tmp_path, inbox).session, args=(store, stop))
    thread.start()
    try:
        wait_for(lambda: store.get(f"{PREFIX}agents/n"))
        for epoch in (3, 4):
            value = encode(hint(epoch))
            store.put(f"{PREFIX}hint", value)
            wait_for(partial(holds, file, value))
        written = file.stat().st_mtime_ns
        seen = store.looks
        wait_for(lambda: store.looks > seen + 2)
        assert file.stat().st_mtime_ns == written
    finally:
        stop.set()
        inbox.news.set()
        thread.join(20)
    assert not thread.is_alive()


def test_lost_changes_are_listed_and_a_deleted_entry_comes_back(tmp_path: Path) -> None:
    inbox, store, stop = Inbox(), MemoryStore(), Stop()
    agent = uplink(tmp_path, inbox)
    inbox.closed.set()
    RunDir(tmp_path).socket.touch()
    thread = threading.Thread(target=agent.session, args=(store, stop))
    thread.start()
    try:
        wait_for(lambda: store.get(f"{PREFIX}agents/n"))
        store.put(f"{PREFIX}hint", encode(hint(3)))
        file = RunDir(tmp_path).hint
        wait_for(file.exists)
        file.unlink()
        agent._changed([Change("", None, 10**6, resync=True)])
        wait_for(file.exists)
        store.delete(f"{PREFIX}agents/")
        wait_for(lambda: store.get(f"{PREFIX}agents/n"))
    finally:
        stop.set()
        inbox.news.set()
        thread.join(20)
    assert not thread.is_alive()
