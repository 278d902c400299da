"""The coordinator's decisions: events in, effects out, no socket, no thread.

It keeps what is known of one job and hands it to the pilot (``trainmesh.coordinator.tuning``),
whose proposals it numbers and publishes as hints. A coordinator that does not lead follows: it
records the same run but publishes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from trainmesh.clock import SystemClock
from trainmesh.coordinator.hints import Hints
from trainmesh.coordinator.job import JobView
from trainmesh.coordinator.tuning.asked_state import AskedState
from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.coordinator.tuning.link_state import Links
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.coordinator.tuning.tuner import Proposal, Tuner, Turn
from trainmesh.coordinator.worlds import Worlds, WorldStart
from trainmesh.topology.document import dump
from trainmesh.topology.graph import LinkGraph, host_graph
from trainmesh.types import (
    Asked,
    Choice,
    ClassFit,
    Event,
    Hello,
    Hint,
    JobStatus,
    LinkOrigin,
    NodeReport,
    Note,
    RankReport,
    RecordLine,
)
from trainmesh.units import count

__all__ = ["Coordinator", "Effects", "Settings"]

MAX_EVENTS = 50
"""As many as `trainmesh status` could show at a glance; the record on disk has all."""
MAX_STEPS_AWAITED = 4096
"""A hint is given up if the ranks have not taken it up after this many steps: four times the
longest cadence of their agreements."""


@dataclass
class Effects:
    """What the shell is to do: store ``hint`` if set, append ``lines`` to the record."""

    hint: Hint | None = None
    lines: list[RecordLine] = field(default_factory=list)


class Coordinator:
    """All that is known of one job.

    Times that are handed in (``now_s``) are of a monotonic clock, from which decisions are made.
    ``unix_s`` only dates what people read, and may be set in any way.
    """

    def __init__(
        self,
        job: str,
        settings: Settings,
        declared: LinkGraph | None,
        events: Sequence[Event] = (),
        asked_before: Sequence[Asked] = (),
        *,
        unix_s: Callable[[], float] = SystemClock.unix_s,
    ) -> None:
        self._unix_s = unix_s
        self._job = job
        self._settings = settings
        self._declared = declared
        self._worlds = Worlds()
        self._view = JobView()
        self._pilot: Tuner | None = None
        """None until all ranks are known."""
        self._proven: tuple[tuple[object, ...], CommConfig] | None = None
        """The configuration that had proved itself when the last world ended, and where its ranks
        were."""
        self._recorded: dict[int, Hello] = {}
        self._graphs: tuple[LinkGraph, LinkGraph] | None = None
        """All links of the job, and what a plan has of them."""
        self._asked = AskedState(settings, asked_before)
        self._is_urgent = False
        self._hints = Hints(job)
        self._epoch = 0
        """In force on all ranks, as far as is known."""
        self._choice: Choice | None = None
        self._fits: tuple[ClassFit, ...] = ()
        self._events: deque[Event] = deque(events, maxlen=MAX_EVENTS)
        self._followed: tuple[Event, ...] = ()
        """What the leader's newest status has held."""
        self._dropped = 0
        self._graph: LinkGraph | None = None
        self._is_used_up_said = False
        self._is_hook_kept = False
        """The script's own hook reduces the gradients, so no plan would be followed."""
        self.document: dict[str, object] | None = None
        """The link graph as a topology document; None until all ranks are known."""

    def report(self, report: NodeReport, now_s: float) -> Effects:
        """An agent's report has arrived."""
        effects = Effects()
        self._dropped += report.dropped
        for rank_report in report.reports:
            self._take(rank_report, now_s, effects)
        return effects

    def hint_seen(self, hint: Hint | None, now_s: float) -> Effects:
        """The store holds ``hint`` now, whoever put it there; None: it holds none, or garbage."""
        effects = Effects()
        if self._hints.stored(hint):
            self._await_hint(now_s, effects)
        return effects

    def decide(self, now_s: float) -> Effects:
        """The leader's turn, about once a second: publish, verify or leave alone."""
        effects = Effects()
        if self._pilot is None or self._is_hook_kept:
            return effects
        self._give_up_waiting(self._pilot, now_s, effects)
        turn = self._pilot.turn(self._view.window, now_s)
        self._note_turn(turn, now_s, effects)
        if self._hints.are_used_up:
            if not self._is_used_up_said:
                self._is_used_up_said = True
                self._log(effects, now_s, "warning", "no epoch is left for another plan")
        elif turn.proposal is not None:
            effects.hint = self._hint_of(turn.proposal)
        else:
            effects.hint = self._hints.to_store_again(self._epoch)
        return effects

    def follow(self, leader: JobStatus, document: dict[str, object] | None) -> Effects:
        """Take a decision of the leading coordinator, made on ``document`` (a link graph), for the
        record and as the state to continue from. Only the leader takes turns."""
        effects = Effects()
        own = {(event.kind, event.text) for event in self._events}
        for event in leader.events:
            if event not in self._followed and (event.kind, event.text) not in own:
                self._events.append(event)
                effects.lines.append(RecordLine(event=event))
        self._followed = leader.events
        if leader.choice is not None and leader.choice != self._choice:
            self._choice = leader.choice
            effects.lines.append(RecordLine(choice=leader.choice))
        if document is not None and document != self.document:
            self.document = document
            effects.lines += [RecordLine(links_from=leader.links_from), RecordLine(graph=document)]
        effects.lines += [RecordLine(fit=fit) for fit in leader.fits if fit not in self._fits]
        self._fits = leader.fits
        return effects

    def is_urgent(self) -> bool:
        """Whether there is something new to decide about before the next turn. Asking resets it."""
        urgent, self._is_urgent = self._is_urgent, False
        return urgent

    def end(self, now_s: float) -> Effects:
        """The job is over."""
        effects = Effects()
        said = {event.text for event in self._events if event.kind == "warning"}
        for text in self._asked.unmet(self._view.num_steps):
            if text not in said:
                self._log(effects, now_s, "warning", text)
        return effects

    def log(self, kind: str, text: str, now_s: float) -> Effects:
        """Something the shell saw happen."""
        effects = Effects()
        self._log(effects, now_s, kind, text)
        return effects

    def status(self, now_s: float, *, is_last: bool = False) -> JobStatus:
        """What is known now; ``is_last``: the job is over."""
        in_force = self._hints.of_epoch(self._epoch)
        return JobStatus(
            job=self._job,
            updated_unix_s=self._unix_s(),
            world_size=self._view.expected_size,
            step=self._view.step,
            num_steps=self._view.num_steps,
            step_time_s=self._view.step_time_s,
            exposed_share=self._view.exposed_share(self._epoch),
            loss=self._view.loss,
            backend=self._view.backend,
            epoch=self._epoch,
            plan=in_force.plan if in_force is not None else None,
            fusion_bytes=in_force.fusion_bytes if in_force is not None else 0,
            codec=in_force.codec if in_force is not None else "none",
            asked=self._asked.items,
            hint=self._hints.newest,
            choice=self._choice,
            fits=self._fits,
            links_from=self._pilot.links.origin if self._pilot is not None else LinkOrigin.GIVEN,
            ranks=self._view.statuses(),
            events=tuple(self._events),
            dropped=self._dropped,
            is_last=is_last,
            num_restarts=max((hello.restart for hello in self._view.hellos.values()), default=0),
        )

    def _take(self, report: RankReport, now_s: float, effects: Effects) -> None:
        hello = report.hello
        if hello is not None and not self._greet(hello, now_s, effects):
            return
        is_current = hello is None or self._worlds.is_current(hello)
        for note in report.notes:
            self._see_note(note, is_current, now_s, effects)
        if self._pilot is not None:  # ranks repeat what comes too early
            self._pilot.codec_costs(report.costs)
        if not is_current and self._pilot is not None:
            return  # ranks of another start, which isn't complete
        for step in report.steps:
            effects.lines.append(RecordLine(step=step))
            self._view.see_step(step)
            self._hints.see_epoch(step.epoch)
            if step.epoch > self._epoch and not step.module:
                self._see_in_force(step.epoch, step.step, effects)
        measured = self._view.window.steps
        if measured and measured[-1].epoch > self._epoch:  # their notes came before our time
            self._switch(measured[-1].epoch, measured[-1].step, now_s, effects)
        effects.lines.extend(RecordLine(pair=pair) for pair in report.pairs)
        if self._pilot is not None and self._graphs is not None:
            self._pilot.pairs(self._view.replicas.pairs(report.pairs, *self._graphs))

    def _greet(self, hello: Hello, now_s: float, effects: Effects) -> bool:
        """False if ``hello`` is of a world that is over."""
        before = self._worlds.current
        if before is not None and self._worlds.is_current(hello):
            return True
        if not self._worlds.greet(hello):
            return False
        current = self._worlds.current
        if current is not before and before is not None:
            self._end_world(hello, now_s, effects)
        if current is None:
            self._record_hello(hello, effects)
            if self._worlds.newest is not None:
                self._view.hellos = self._worlds.newest.hellos
        elif current is not before:
            self._begin_world(current, now_s, effects)
        return True

    def _record_hello(self, hello: Hello, effects: Effects) -> None:
        if self._recorded.get(hello.rank) != hello:
            self._recorded[hello.rank] = hello
            effects.lines.append(RecordLine(hello=hello))

    def _begin_world(self, world: WorldStart, now_s: float, effects: Effects) -> None:
        """All ranks of ``world`` are known."""
        self._view = JobView(world)
        for hello in world.hellos.values():
            self._record_hello(hello, effects)
        nodes, replicas, backend = self._view.nodes, self._view.replicas, self._view.backend
        whole = self._graph_of(world.size, nodes, now_s, effects)
        self._graphs = whole, replicas.share(whole)
        links = Links(self._graphs[1], replicas.nodes, backend)
        self._pilot = Tuner(replicas.settings(self._settings), links, replicas.size, backend)
        if self._hints.begin(world.number):
            self._await_hint(now_s, effects)
        elif self._proven is not None and self._proven[0] == self._view.placement:
            self._pilot.take_up(self._proven[1], "as before the restart")
        self._is_urgent = True
        self._note_graph(effects)
        names = ", ".join(sorted(nodes))
        text = f"{count(world.size, 'rank')} on {names} with {backend}"
        self._log(effects, now_s, "hello", text + replicas.words)
        self._judge_asked(effects, now_s)

    def _end_world(self, newcomer: Hello, now_s: float, effects: Effects) -> None:
        """The processes were restarted and begin again on native, at step 0; or they have only now
        learned their world's number."""
        known = self._view.hellos.get(newcomer.rank)
        if known is None or replace(known, world=newcomer.world) != newcomer:
            self._log(effects, now_s, "hello", "the job's processes were restarted")
        proven = self._pilot.proven if self._pilot is not None else None
        self._proven = (self._view.placement, proven) if proven is not None else None
        self._view = JobView()
        self._recorded = {}
        self._hints.begin(None)
        self._asked.begin_again()
        self._pilot = None
        self._is_hook_kept = False
        self._epoch = 0

    def _hint_of(self, proposal: Proposal) -> Hint:
        comm_config = proposal.comm_config
        return Hint(
            job=self._job,
            epoch=self._hints.next_epoch,
            effective_step=self._view.step + 1,
            plan=comm_config.plan,
            reason=proposal.reason,
            world=self._view.world.number if self._view.world is not None else 0,
            fusion_bytes=comm_config.fusion_bytes,
            codec=comm_config.codec,
            probe_bytes=proposal.probe_bytes,
        )

    def _await_hint(self, now_s: float, effects: Effects) -> None:
        """The ranks take up the newest hint when they reach its step, if it is for a world of their
        size."""
        hint = self._hints.newest
        if hint is None or self._pilot is None:
            return
        self._hints.keep(self._epoch)
        effects.lines.append(RecordLine(hint=hint))
        if not hint.probe_bytes:
            text = f"plan of epoch {hint.epoch} from step {hint.effective_step}: {hint.reason}"
            self._log(effects, now_s, "plan", text)
        if hint.plan.world_size == self._view.replicas.size:
            self._pilot.hint(hint)

    def _give_up_waiting(self, pilot: Tuner, now_s: float, effects: Effects) -> None:
        """Never wait for ever: neither for a hint that some rank never takes up, nor for reports
        about one that is in force but that the store has lost."""
        awaited = pilot.awaited
        if awaited is None:
            if self._epoch and self._hints.of_epoch(self._epoch) is None:
                native = CommConfig.native(self._view.replicas.size)
                pilot.take_up(native, f"the store has lost the plan of epoch {self._epoch}")
        elif self._view.step > awaited.effective_step + MAX_STEPS_AWAITED:
            text = f"not all ranks have taken up epoch {awaited.epoch}; it is given up"
            self._log(effects, now_s, "warning", text)
            pilot.rejected(awaited.epoch)

    def _graph_of(
        self, world_size: int, nodes: dict[str, list[int]], now_s: float, effects: Effects
    ) -> LinkGraph:
        if self._declared is not None:
            if self._declared.world_size == world_size:
                return self._declared
            text = (
                f"the topology file has {count(self._declared.world_size, 'rank')}, the job has "
                f"{world_size}; it is ignored"
            )
            self._log(effects, now_s, "warning", text)
        return host_graph(nodes)

    def _see_note(self, note: Note, is_current: bool, now_s: float, effects: Effects) -> None:
        if is_current:
            self._hints.see_epoch(note.epoch)
        if note.kind == "switched":
            if is_current:
                self._see_in_force(note.epoch, note.step, effects)
            if is_current and self._view.see_switch(note.rank, note.epoch):
                self._switch(note.epoch, note.step, now_s, effects)
        elif note.kind == "mismatch":
            if is_current and self._view.see_mismatch(note.step, note.epoch):
                self._log(effects, now_s, note.kind, note.text, note.step)
        else:
            text = f"rank {note.rank}: {note.text}"
            self._log(effects, now_s, note.kind, text, note.step)
            if note.kind == "rejected" and is_current and self._pilot is not None:
                self._pilot.rejected(note.epoch)
            self._is_hook_kept = self._is_hook_kept or note.kind == "hook_kept"
            self._asked.refused(note, self._hints.of_epoch(note.epoch))
            self._note_asked(effects)

    def _see_in_force(self, epoch: int, step: int, effects: Effects) -> None:
        hint = self._hints.of_epoch(epoch)
        if hint is not None and hint.plan.world_size == self._view.replicas.size:
            self._asked.in_force(hint, step)
            self._note_asked(effects)

    def _note_asked(self, effects: Effects) -> None:
        news = self._asked.news()
        if news is not None:
            effects.lines.append(RecordLine(asked=news))

    def _switch(self, epoch: int, step: int, now_s: float, effects: Effects) -> None:
        """All ranks run ``epoch`` from ``step`` on; epochs only grow."""
        if epoch <= self._epoch:
            return
        self._epoch = epoch
        hint = self._hints.of_epoch(epoch)
        if hint is None or hint.plan.world_size != self._view.replicas.size:
            return  # not known, or of another job that wrote into the same place
        self._see_in_force(epoch, step, effects)
        if not hint.probe_bytes:
            ranks, what = self._view.world_size, CommConfig.of(hint).words
            text = f"step {step}: all {ranks} ranks switched to {what} (epoch {epoch})"
            self._log(effects, now_s, "switch", text, step)
        if self._pilot is not None:
            self._pilot.switched(hint, step, now_s)

    def _note_turn(self, turn: Turn, now_s: float, effects: Effects) -> None:
        if turn.choice is not None:
            self._choice = turn.choice
            effects.lines.append(RecordLine(choice=turn.choice))
        if turn.fit is not None:
            self._fits = (turn.fit,)
            effects.lines.append(RecordLine(fit=turn.fit))
        for kind, text in turn.words:
            self._log(effects, now_s, kind, text)
        if self._note_graph(effects):
            self._judge_asked(effects, now_s)

    def _judge_asked(self, effects: Effects, now_s: float) -> None:
        """Say what can't be had on the links as they are known now."""
        if self._pilot is None:
            return
        view = self._view
        for text in self._asked.judged(view.replicas, self._pilot.links.now, view.backend):
            self._log(effects, now_s, "warning", text)
        self._note_asked(effects)

    def _note_graph(self, effects: Effects) -> bool:
        """Record the links if they have changed; whether they have."""
        if self._pilot is None or self._pilot.links.now is self._graph:
            return False
        links = self._pilot.links
        self._graph = links.now
        self.document = dump(self._graph)
        if links.origin is not LinkOrigin.BUCKETS:
            self._fits = ()  # nothing is planned with them any more
        effects.lines += [
            RecordLine(links_from=links.origin),
            RecordLine(graph=self.document),
        ]
        return True

    def _log(
        self, effects: Effects, now_s: float, kind: str, text: str, step: int | None = None
    ) -> None:
        event = Event(
            unix_s=self._unix_s(),
            step=self._view.step if step is None else step,
            kind=kind,
            text=text,
        )
        self._events.append(event)
        effects.lines.append(RecordLine(event=event))
