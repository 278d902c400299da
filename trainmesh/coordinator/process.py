"""The coordinator's process: feeds ``trainmesh.coordinator.coordinator`` from the store and does
what it says. Run by the launcher as ``python -m trainmesh.coordinator.process``, on every node;
they elect a leader, and the others follow, ready to take over. It ends on SIGTERM or when its
standard input closes.
"""

from __future__ import annotations

import queue
import sys
import threading

from trainmesh.clock import Clock, SystemClock
from trainmesh.console import note
from trainmesh.coordinator.coordinator import Coordinator, Effects, Settings
from trainmesh.coordinator.record import RecordWriter
from trainmesh.errors import FencedOut, PlanError, StoreError, WireError
from trainmesh.process import LOOK_AGAIN_S, ControlEnvironment, Stop, run_process, run_with_store
from trainmesh.process_health import HealthReporter
from trainmesh.rundir import write_atomically
from trainmesh.store.base import Change, Entry, Store, claim_prefix, job_prefix
from trainmesh.topology.document import load_file
from trainmesh.topology.validate import validate
from trainmesh.types import Hint, JobStatus, NodeReport
from trainmesh.wire import decode, encode

__all__ = ["main"]

TICK_S = 1.0
"""Between two decisions: agents report once a second."""
LEASE_TTL_S = 5
"""After a coordinator that is gone, its successor leads this much later."""
FINISH_S = 2.0
"""At the end of a job, for the last reports of agents that are slower than ``QUIET_S``."""
QUIET_S = 0.4
"""If nothing has come for this long, the agents have sent everything."""
AGENT_GRACE_S = 5.0
"""From the end of the last agent on, another one may still come."""
MAX_WAITING_CHANGES = 10_000
"""Changes that the watch may be ahead by; more means that the coordinator hangs."""
MAX_AGENTS = 65_536
"""Agent processes whose repeated reports are known: one for each node, and restarted ones."""
MAX_BACKOFF_S = 30.0
"""Between two tries to write a hint that somebody else keeps writing."""
SAID_REFUSALS = 2
"""The first may be chance; of the second somebody hears, and of later ones nobody again."""


class CoordinatorProcess:
    """Keeps one job's Coordinator across sessions with the store.

    Args:
        environment: What the launcher has passed.
        record: Of the run.
        clock: Its monotonic side is what everything is decided from.
    """

    def __init__(
        self, environment: ControlEnvironment, record: RecordWriter, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._environment = environment
        self._prefix = job_prefix(environment.job)
        self._record = record
        self._changes: queue.Queue[Change] = queue.Queue(MAX_WAITING_CHANGES)
        self._coordinator: Coordinator | None = None
        self._sequences: dict[tuple[str, int], int] = {}
        """The last one of each agent process, by node and the process's number."""
        self._hint_revision = 0
        """0: the store has no hint."""
        self._listed = 0
        """The revision of the last listing; changes up to it are known."""
        self._written = 0
        """That of the last write in this session."""
        self._refused = Refusals()
        self._look_again_s = 0.0
        self._leader: Entry | None = None
        self._document: dict[str, object] | None = None
        self._overflown = threading.Event()
        """Changes were dropped: the store must be listed again."""
        self._agents_gone_s: dict[str, float] = {}

    def session(self, store: Store, stop: Stop) -> None:
        """Serve until ``stop``, or until the lease is lost (then the caller comes again)."""
        lease = store.lease(LEASE_TTL_S)
        self._leader = None
        self._changes = queue.Queue(MAX_WAITING_CHANGES)
        self._written = 0
        coordinator = self._begin(store)
        watch = store.watch(
            self._prefix, self._enqueue, start_revision=self._refresh(store, coordinator) + 1
        )
        try:
            while not stop.is_set() and not lease.lost:
                self._leader = self._leader or store.elect(
                    f"{self._prefix}leader/",
                    self._environment.node.encode(),
                    lease,
                    timeout_s=0.0,
                )
                self._work(store, coordinator, self._clock.monotonic_s() + TICK_S, eager=True)
                self._tick(store, coordinator)
            if stop.is_set():
                self._finish(store, coordinator)
                self._end(coordinator)
        finally:
            watch.close()
            lease.close()

    def _begin(self, store: Store) -> Coordinator:
        """The coordinator, made on the first session with what an earlier one has left."""
        if self._coordinator is not None:
            return self._coordinator
        environment = self._environment
        declared = load_file(environment.topology) if environment.topology else None
        settings = Settings(
            margin=environment.settings.margin,
            only=environment.settings.only,
            fusion_bytes=environment.settings.fusion_bytes,
            compression=environment.settings.compression,
        )
        earlier = self._earlier(store)
        self._coordinator = Coordinator(
            environment.job,
            settings,
            declared,
            earlier.events,
            earlier.asked,
            unix_s=self._clock.unix_s,
        )
        if earlier.events:
            self._do(
                self._coordinator.log(
                    "coordinator", "the coordinator was restarted", self._clock.monotonic_s()
                )
            )
        return self._coordinator

    def _earlier(self, store: Store) -> JobStatus:
        """The last status of the previous coordinator; empty if there was none."""
        entry = store.get(f"{self._prefix}status")
        try:
            if entry is not None:
                return decode(entry.value, JobStatus, what=entry.key)
        except WireError:
            pass  # garbage
        return JobStatus(job=self._environment.job, updated_unix_s=0.0)

    def _refresh(self, store: Store, coordinator: Coordinator) -> int:
        """Take everything that the store holds. It has lost whatever it does not hold."""
        entries, revision = store.list(self._prefix)
        held = {entry.key for entry in entries}
        for name in ("hint", "graph"):
            if f"{self._prefix}{name}" not in held:
                self._apply(Change(f"{self._prefix}{name}", None, revision), coordinator)
        for entry in entries:
            self._apply(Change(entry.key, entry.value, entry.mod_revision), coordinator)
        self._listed = revision
        return revision

    def _enqueue(self, changes: list[Change]) -> None:
        for change in changes:
            try:
                self._changes.put_nowait(change)
            except queue.Full:
                self._overflown.set()
                return

    def _work(
        self, store: Store, coordinator: Coordinator, until_s: float, *, eager: bool = False
    ) -> None:
        """Apply changes as they come, until the given monotonic time; if ``eager``, until there is
        something to decide about at once."""
        while (left_s := until_s - self._clock.monotonic_s()) > 0:
            try:
                change = self._changes.get(timeout=left_s)
            except queue.Empty:
                return
            if change.resync or self._overflown.is_set():
                self._overflown.clear()
                self._refresh(store, coordinator)
            elif change.revision > self._listed:
                self._apply(change, coordinator)
            if eager and coordinator.is_urgent():
                return

    def _apply(self, change: Change, coordinator: Coordinator) -> None:
        key = change.key.removeprefix(self._prefix)
        try:
            if key.startswith("agents/"):
                self._see_agent(key.removeprefix("agents/"), present=change.value is not None)
            elif key == "hint":
                self._hint_revision = change.revision if change.value is not None else 0
                self._do(coordinator.hint_seen(_usable_hint(change), self._clock.monotonic_s()))
            elif key == "graph" and change.value is None:
                self._document = None
            elif key in ("status", "graph") and change.value is not None and self._leader is None:
                self._follow(key, change.value, coordinator)
            elif key.startswith("reports/") and change.value is not None:
                self._take_report(decode(change.value, NodeReport, what=change.key), coordinator)
        except WireError as error:
            note(f"ignored: {error}")

    def _follow(self, key: str, value: bytes, coordinator: Coordinator) -> None:
        """Another coordinator leads; it has stored the links, then the status."""
        if key == "graph":
            self._document = decode(value, dict[str, object], what=key)
        else:
            leader = decode(value, JobStatus, what=key)
            self._do(coordinator.follow(leader, self._document))

    def _see_agent(self, node: str, *, present: bool) -> None:
        if present:
            self._agents_gone_s.pop(node, None)
        else:
            self._agents_gone_s[node] = self._clock.monotonic_s()

    def _report_missing_agents(self, coordinator: Coordinator) -> None:
        """Not at once: at the end of a job agents leave just before the coordinator, and one
        that has crashed is soon started again."""
        for node, since_s in list(self._agents_gone_s.items()):
            if self._clock.monotonic_s() - since_s > AGENT_GRACE_S:
                del self._agents_gone_s[node]
                self._do(
                    coordinator.log(
                        "agent", f"the agent of {node} is gone", self._clock.monotonic_s()
                    )
                )

    def _take_report(self, report: NodeReport, coordinator: Coordinator) -> None:
        agent = (report.node, report.agent)
        if report.sequence > self._sequences.get(agent, 0):
            self._sequences.pop(agent, None)
            self._sequences[agent] = report.sequence
            while len(self._sequences) > MAX_AGENTS:
                del self._sequences[next(iter(self._sequences))]
            self._do(coordinator.report(report, self._clock.monotonic_s()))

    def _do(self, effects: Effects) -> None:
        self._record.write(effects.lines)

    def _tick(self, store: Store, coordinator: Coordinator) -> None:
        """The leader decides and publishes; a follower does nothing."""
        if self._leader is None:
            return
        self._report_missing_agents(coordinator)
        if self._clock.monotonic_s() >= self._look_again_s:
            self._read_hint_again(store, coordinator)
        try:
            effects = coordinator.decide(self._clock.monotonic_s())
            self._do(effects)
            if effects.hint is not None:
                self._publish(store, coordinator, effects.hint, self._leader)
            if coordinator.document != self._document:
                store.put(f"{self._prefix}graph", encode(coordinator.document))
                self._document = coordinator.document
            status = encode(coordinator.status(self._clock.monotonic_s()))
            self._see_revision(store.put(f"{self._prefix}status", status))
        except FencedOut:
            self._leader = None  # the next session campaigns again
            raise

    def _publish(self, store: Store, coordinator: Coordinator, hint: Hint, leader: Entry) -> None:
        """Store ``hint``. If the key has changed, a notification was lost or somebody else writes
        it. The key is then read again, and the coordinator, which knows now, tries again."""
        if not self._refused.may_try(self._clock.monotonic_s()):
            return
        key = f"{self._prefix}hint"
        stored = store.cas(key, encode(hint), expected_revision=self._hint_revision, fence=leader)
        if stored is not None:
            self._refused.over()
            return
        if self._refused.another(self._clock.monotonic_s()):
            text = f"{key} was changed by somebody else; it is read again and written again"
            note(text)
            self._do(coordinator.log("warning", text, self._clock.monotonic_s()))
        self._read_hint_again(store, coordinator)

    def _read_hint_again(self, store: Store, coordinator: Coordinator) -> None:
        self._look_again_s = self._clock.monotonic_s() + LOOK_AGAIN_S
        key = f"{self._prefix}hint"
        entry = store.get(key)
        value, revision = (entry.value, entry.mod_revision) if entry is not None else (None, 0)
        if revision != self._hint_revision:
            self._apply(Change(key, value, revision), coordinator)

    def _see_revision(self, revision: int) -> None:
        """Note what the store has written.

        Raises:
            StoreError: it has lost what it held before; the session must begin again.
        """
        if revision < self._written:
            raise StoreError(
                f"the store went back from revision {self._written} to {revision}: it was "
                "emptied or restored"
            )
        self._written = revision

    def _finish(self, store: Store, coordinator: Coordinator) -> None:
        """Take the agents' remaining reports. The last coordinator to leave clears the job's
        keys."""
        end_s = self._clock.monotonic_s() + FINISH_S
        while self._clock.monotonic_s() < end_s:
            self._work(store, coordinator, min(end_s, self._clock.monotonic_s() + QUIET_S))
            if self._changes.empty():
                break
        if self._leader is not None and not store.list(f"{self._prefix}agents/")[0]:
            store.delete(self._prefix)
            store.delete(claim_prefix(self._environment.job))

    def _end(self, coordinator: Coordinator) -> None:
        """Write the last record lines, and the status for the launcher: the agent, which hands it
        down while the job runs, has ended."""
        self._do(coordinator.end(self._clock.monotonic_s()))
        try:
            write_atomically(
                self._environment.run.status,
                encode(coordinator.status(self._clock.monotonic_s(), is_last=True)),
            )
        except OSError as error:
            note(f"no last status: {error}")


class Refusals:
    """Counts writes of one key that were refused in a row: when to try again, and what to say
    once."""

    def __init__(self) -> None:
        self._count = 0
        self._due_s = 0.0

    def may_try(self, now_s: float) -> bool:
        return now_s >= self._due_s

    def another(self, now_s: float) -> bool:
        """Count one more. True for the first that is worth a message; a single one is only a
        race."""
        self._count += 1
        self._due_s = now_s + min(MAX_BACKOFF_S, TICK_S * 2.0 ** (self._count - 2))
        return self._count == SAID_REFUSALS

    def over(self) -> None:
        self._count, self._due_s = 0, 0.0


def _usable_hint(change: Change) -> Hint | None:
    """The hint of a changed key; None if there is none, or one that no agent would take."""
    if change.value is None:
        return None
    try:
        hint = decode(change.value, Hint, what=change.key)
        validate(hint.plan, hint.plan.world_size)
    except (WireError, PlanError) as error:
        note(f"hint refused: {error}")
        return None
    return hint


def serve(environment: ControlEnvironment, stop: Stop, health: HealthReporter) -> None:
    """Work until ``stop``."""
    with RecordWriter(environment.run.record, health) as record:
        shell = CoordinatorProcess(environment, record)
        run_with_store(environment, stop, health, lambda store: shell.session(store, stop))


def main() -> int:
    """Entry point of the coordinator process."""
    return run_process(serve)


if __name__ == "__main__":
    sys.exit(main())
