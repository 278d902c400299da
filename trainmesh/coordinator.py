"""The coordinator's decisions: events in, effects out, no clock, no socket, no thread.

It keeps what is known of one job and hands it to the pilot (``trainmesh.decisions``), whose
proposals it numbers and publishes as hints. A coordinator that does not lead follows: it records
the same run but publishes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainmesh.compression import NOTE_KIND, codec_cost
from trainmesh.decisions import asked, refusals
from trainmesh.decisions.links import Links
from trainmesh.decisions.pilot import Pilot, Turn
from trainmesh.decisions.regime import Regime
from trainmesh.decisions.settings import Settings
from trainmesh.jobview import JobView
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
    NodeReport,
    Note,
    RankReport,
    RecordLine,
)

__all__ = ["Coordinator", "Effects", "Settings"]

MAX_EVENTS = 50
MAX_HINTS = 8
"""Remembered: the one in force, and those that overtook it before all ranks had switched."""


@dataclass
class Effects:
    """What the shell is to do: store ``hint`` if set, append ``lines`` to the record."""

    hint: Hint | None = None
    lines: list[RecordLine] = field(default_factory=list)


class Coordinator:
    """All that is known of one job."""

    def __init__(
        self, job: str, settings: Settings, declared: LinkGraph | None, events: Sequence[Event] = ()
    ) -> None:
        self._job = job
        self._settings = settings
        self._declared = declared
        self._view = JobView()
        self._pilot: Pilot | None = None
        """None until all ranks are known."""
        self._graphs: tuple[LinkGraph, LinkGraph] | None = None
        """All links of the job, and what a plan has of them."""
        self._asked = asked.asked_for(settings.only, settings.fusion_bytes, settings.compression)
        self._told_asked: tuple[Asked, ...] = ()
        """As it stands in the record."""
        self._is_urgent = False
        self._hints: dict[int, Hint] = {}
        self._hint: Hint | None = None
        self._epoch = 0
        self._choice: Choice | None = None
        self._fits: tuple[ClassFit, ...] = ()
        self._events: deque[Event] = deque(events, maxlen=MAX_EVENTS)
        self._dropped = 0
        self._graph: LinkGraph | None = None
        self.document: dict[str, object] | None = None
        """The link graph as a topology document; None until all ranks are known."""

    def report(self, report: NodeReport, now_unix_s: float) -> Effects:
        """An agent's report has arrived."""
        effects = Effects()
        self._dropped += report.dropped
        for rank_report in report.reports:
            self._take(rank_report, now_unix_s, effects)
        return effects

    def hint_seen(self, hint: Hint, now_unix_s: float) -> Effects:
        """The store holds ``hint`` now, whoever put it there."""
        effects = Effects()
        if self._hint is not None and hint.epoch <= self._hint.epoch:
            return effects
        self._hint = hint
        self._hints[hint.epoch] = hint
        for old in sorted(self._hints)[:-MAX_HINTS]:
            if old != self._epoch:
                del self._hints[old]
        effects.lines.append(RecordLine(hint=hint))
        if not hint.probe_bytes:
            text = f"plan of epoch {hint.epoch} from step {hint.effective_step}: {hint.reason}"
            self._log(effects, now_unix_s, "plan", text)
        self._await_hint()
        return effects

    def decide(self, now_unix_s: float) -> Effects:
        """The leader's turn, about once a second: publish, verify or leave alone."""
        effects = Effects()
        if self._pilot is None:
            return effects
        turn = self._pilot.turn(self._view.window, now_unix_s)
        self._note_turn(turn, now_unix_s, effects)
        if turn.proposal is not None:
            regime = turn.proposal.regime
            effects.hint = Hint(
                job=self._job,
                epoch=self._hint.epoch + 1 if self._hint is not None else 1,
                effective_step=self._view.step + 1,
                plan=regime.plan,
                reason=turn.proposal.reason,
                fusion_bytes=regime.fusion_bytes,
                codec=regime.codec,
                probe_bytes=turn.proposal.probe_bytes,
            )
        return effects

    def is_urgent(self) -> bool:
        """Whether there is something new to decide about, which need not wait for the next turn;
        asking takes it back."""
        urgent, self._is_urgent = self._is_urgent, False
        return urgent

    def end(self, now_unix_s: float) -> Effects:
        """The job is over."""
        effects = Effects()
        for text in asked.unmet(self._asked, self._view.num_steps):
            self._log(effects, now_unix_s, "warning", text)
        return effects

    def log(self, kind: str, text: str, now_unix_s: float) -> Effects:
        """Something the shell saw happen."""
        effects = Effects()
        self._log(effects, now_unix_s, kind, text)
        return effects

    def status(self, now_unix_s: float) -> JobStatus:
        """What is known now."""
        in_force = self._hints.get(self._epoch)
        return JobStatus(
            job=self._job,
            updated_unix_s=now_unix_s,
            world_size=self._view.world_size,
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
            asked=self._asked,
            hint=self._hint,
            choice=self._choice,
            fits=self._fits,
            ranks=self._view.statuses(),
            events=tuple(self._events),
            dropped=self._dropped,
        )

    def _take(self, report: RankReport, now_unix_s: float, effects: Effects) -> None:
        if report.hello is not None:
            self._greet(report.hello, now_unix_s, effects)
        for note in report.notes:
            self._see_note(note, now_unix_s, effects)
        for step in report.steps:
            effects.lines.append(RecordLine(step=step))
            self._view.see_step(step)
        measured = self._view.window.steps
        if measured and measured[-1].epoch > self._epoch:  # their notes came before our time
            self._switch(measured[-1].epoch, measured[-1].step, now_unix_s, effects)
        effects.lines.extend(RecordLine(pair=pair) for pair in report.pairs)
        if self._pilot is not None and self._graphs is not None:
            self._pilot.pairs(self._view.replicas.pairs(report.pairs, *self._graphs))

    def _greet(self, hello: Hello, now_unix_s: float, effects: Effects) -> None:
        if self._view.hellos.get(hello.rank) == hello:
            return
        if self._view.is_restart(hello):
            self._forget(now_unix_s, effects)
        effects.lines.append(RecordLine(hello=hello))
        if not self._view.greet(hello):
            return
        nodes, replicas = self._view.nodes, self._view.replicas
        whole = self._graph_of(hello.world_size, nodes, now_unix_s, effects)
        self._graphs = whole, replicas.share(whole)
        links = Links(self._graphs[1], replicas.nodes, hello.backend)
        settings = replicas.settings(self._settings)
        self._pilot = Pilot(settings, links, replicas.size, hello.backend)
        self._await_hint()
        self._is_urgent = True
        self._note_graph(effects)
        names = ", ".join(sorted(nodes))
        text = f"{hello.world_size} ranks on {names} with {hello.backend}"
        self._log(effects, now_unix_s, "hello", text + replicas.words)
        self._judge_asked(effects, now_unix_s)

    def _forget(self, now_unix_s: float, effects: Effects) -> None:
        """The processes were restarted: they begin again on native, at step 0."""
        if self._pilot is not None:
            self._log(effects, now_unix_s, "hello", "the job's processes were restarted")
        self._view.forget()
        self._asked = asked.anew(self._asked)
        self._pilot = None
        self._epoch = 0

    def _await_hint(self) -> None:
        """The ranks take up the newest hint when they get to its step, if it is for as many."""
        hint = self._hint
        fits = hint is not None and hint.plan.world_size == self._view.replicas.size
        if self._pilot is not None and hint is not None and fits:
            self._pilot.hint(hint)

    def _graph_of(
        self, world_size: int, nodes: dict[str, list[int]], now_unix_s: float, effects: Effects
    ) -> LinkGraph:
        if self._declared is not None:
            if self._declared.world_size == world_size:
                return self._declared
            text = (
                f"the topology file has {self._declared.world_size} ranks, the job has "
                f"{world_size}; it is ignored"
            )
            self._log(effects, now_unix_s, "warning", text)
        return host_graph(nodes)

    def _see_note(self, note: Note, now_unix_s: float, effects: Effects) -> None:
        if note.kind == "switched":
            if self._view.see_switch(note.rank, note.epoch) and note.epoch != self._epoch:
                self._switch(note.epoch, note.step, now_unix_s, effects)
        elif note.kind == NOTE_KIND:
            cost = codec_cost(note.text)
            if cost is not None and self._pilot is not None:  # ranks repeat what comes too early
                self._pilot.codec_cost(cost)
        else:
            text = f"rank {note.rank}: {note.text}"
            self._log(effects, now_unix_s, note.kind, text, note.step)
            if note.kind == "rejected" and self._pilot is not None:
                self._pilot.rejected(note.epoch)
            self._see_refusal(note, effects)

    def _see_refusal(self, note: Note, effects: Effects) -> None:
        """A rank can't carry out one hint, or no hint at all."""
        hint = self._hints.get(note.epoch)
        if note.kind == "rejected" and hint is not None:
            self._asked = asked.refused(self._asked, note.text, Regime.of(hint))
        elif note.kind == "hook_kept":
            why = f"the script's own communication hook {note.text} is kept"
            self._asked = asked.refused(self._asked, why)
        elif note.kind == "unplanned":
            self._asked = asked.refused(self._asked, note.text)
        self._note_asked(effects)

    def _note_asked(self, effects: Effects) -> None:
        if self._asked != self._told_asked:
            self._told_asked = self._asked
            effects.lines.append(RecordLine(asked=self._asked))

    def _switch(self, epoch: int, step: int, now_unix_s: float, effects: Effects) -> None:
        """All ranks run ``epoch`` from ``step`` on."""
        self._epoch = epoch
        hint = self._hints.get(epoch)
        if hint is None:
            return
        self._asked = asked.in_force(self._asked, Regime.of(hint), step)
        self._note_asked(effects)
        if not hint.probe_bytes:
            ranks, what = self._view.world_size, Regime.of(hint).words
            text = f"step {step}: all {ranks} ranks switched to {what} (epoch {epoch})"
            self._log(effects, now_unix_s, "switch", text, step)
        if self._pilot is not None:
            self._pilot.switched(hint, step, now_unix_s)

    def _note_turn(self, turn: Turn, now_unix_s: float, effects: Effects) -> None:
        if turn.choice is not None:
            self._choice = turn.choice
            effects.lines.append(RecordLine(choice=turn.choice))
        if turn.fit is not None:
            self._fits = (turn.fit,)
            effects.lines.append(RecordLine(fit=turn.fit))
        for kind, text in turn.words:
            self._log(effects, now_unix_s, kind, text)
        if self._note_graph(effects):
            self._judge_asked(effects, now_unix_s)

    def _judge_asked(self, effects: Effects, now_unix_s: float) -> None:
        """Say what can't be had on the links as they are known now, once each."""
        if self._pilot is None:
            return
        graph, view = self._pilot.links.now, self._view
        known = {item.refusal for item in self._asked}
        self._asked = refusals.judged(self._asked, view.replicas, graph, view.backend)
        for item in self._asked:
            if item.refusal not in ("", *known):
                self._log(effects, now_unix_s, "warning", asked.sentence(item))
        self._note_asked(effects)

    def _note_graph(self, effects: Effects) -> bool:
        """Record the links if they have changed; whether they have."""
        if self._pilot is None or self._pilot.links.now is self._graph:
            return False
        self._graph = self._pilot.links.now
        self.document = dump(self._graph)
        effects.lines.append(RecordLine(graph=self.document))
        return True

    def _log(
        self, effects: Effects, now_unix_s: float, kind: str, text: str, step: int | None = None
    ) -> None:
        event = Event(
            unix_s=now_unix_s,
            step=self._view.step if step is None else step,
            kind=kind,
            text=text,
        )
        self._events.append(event)
        effects.lines.append(RecordLine(event=event))
