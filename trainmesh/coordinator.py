"""The coordinator's decisions: events in, effects out, no clock, no socket, no thread.

It measures the plan in force, chooses among the candidates, publishes a hint, sees all ranks
switch, measures again, and takes a plan back that does harm. Then it is settled until the link
graph or the job's ranks change. A coordinator that does not lead follows: it records the same
run but publishes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from trainmesh.errors import PlanError
from trainmesh.measure import MeasuredStep, StepWindow, exposed_s
from trainmesh.topology.document import dump
from trainmesh.topology.fit import fit_class
from trainmesh.topology.graph import LinkGraph, host_graph
from trainmesh.topology.planner import CALIBRATION, choose
from trainmesh.types import (
    Algorithm,
    Choice,
    ClassFit,
    Event,
    Hello,
    Hint,
    JobStatus,
    NodeReport,
    Note,
    Plan,
    RankReport,
    RankStatus,
    RecordLine,
    StepReport,
)

__all__ = ["Coordinator", "Effects", "Settings", "harm"]

MAX_EVENTS = 50


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user may choose, and how much evidence a decision needs.

    ``min_steps`` trades a quick decision against noise: a median over that many steps.
    A plan is taken back if a step's buckets take ``harm_ratio`` times as long as before, or if the
    step waits longer by the share ``harm_share`` of itself; both must be above the noise of a
    shared machine.
    """

    margin: float = 0.05
    only: str | None = None
    min_steps: int = 16
    harm_ratio: float = 1.25
    harm_share: float = 0.1


class Phase(StrEnum):
    """MEASURE the plan in force, wait for all ranks to SWITCH, VERIFY the new one, SETTLED."""

    MEASURE = "measure"
    SWITCH = "switch"
    VERIFY = "verify"
    SETTLED = "settled"


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
        self._graph: LinkGraph | None = None
        self._hellos: dict[int, Hello] = {}
        self._window = StepWindow(0)
        self._latest: dict[int, StepReport] = {}
        self._phase = Phase.MEASURE
        self._plans: dict[int, Plan] = {}
        self._hint: Hint | None = None
        self._switched: dict[int, int] = {}
        self._epoch = 0
        self._before: list[MeasuredStep] = []
        self._choice: Choice | None = None
        self._fits: tuple[ClassFit, ...] = ()
        self._events: deque[Event] = deque(events, maxlen=MAX_EVENTS)
        self._dropped = 0
        self._step = 0
        self._step_time_s = 0.0
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
        self._plans[hint.epoch] = hint.plan
        self._phase = Phase.SWITCH
        effects.lines.append(RecordLine(hint=hint))
        text = f"plan of epoch {hint.epoch} from step {hint.effective_step}: {hint.reason}"
        self._log(effects, now_unix_s, "plan", text)
        return effects

    def decide(self, now_unix_s: float) -> Effects:
        """The leader's turn, about once a second: publish, verify or leave alone."""
        effects = Effects()
        if self._graph is None:
            return effects
        steps = self._window.of_epoch(self._epoch)
        forced = self._settings.only is not None and self._hint is None
        enough = len(steps) >= (2 if forced else self._settings.min_steps)
        if enough and self._phase is Phase.MEASURE:
            self._plan(steps, now_unix_s, effects)
        elif enough and self._phase is Phase.VERIFY:
            self._verify(steps, now_unix_s, effects)
        return effects

    def log(self, kind: str, text: str, now_unix_s: float) -> Effects:
        """Something the shell saw happen."""
        effects = Effects()
        self._log(effects, now_unix_s, kind, text)
        return effects

    def status(self, now_unix_s: float) -> JobStatus:
        """What is known now."""
        recent = self._window.of_epoch(self._epoch)[-32:]
        newest = max(self._latest.values(), key=lambda report: report.step, default=None)
        return JobStatus(
            job=self._job,
            updated_unix_s=now_unix_s,
            world_size=self._window.world_size,
            step=self._step,
            step_time_s=self._step_time_s,
            exposed_share=median(step.exposed_share for step in recent) if recent else 0.0,
            loss=newest.loss if newest else None,
            backend=next((hello.backend for hello in self._hellos.values()), ""),
            epoch=self._epoch,
            plan=self._plans.get(self._epoch),
            hint=self._hint,
            choice=self._choice,
            fits=self._fits,
            ranks=tuple(self._rank_status(rank) for rank in sorted(self._hellos)),
            events=tuple(self._events),
            dropped=self._dropped,
        )

    def _take(self, report: RankReport, now_unix_s: float, effects: Effects) -> None:
        if report.hello is not None:
            self._greet(report.hello, now_unix_s, effects)
        for step in report.steps:
            effects.lines.append(RecordLine(step=step))
            self._see_step(step)
        for note in report.notes:
            self._see_note(note, now_unix_s, effects)

    def _greet(self, hello: Hello, now_unix_s: float, effects: Effects) -> None:
        known = self._hellos.get(hello.rank)
        if known == hello:
            return
        if self._window.world_size and (known is not None or self._world_changed(hello)):
            self._forget(now_unix_s, effects)
        self._hellos[hello.rank] = hello
        effects.lines.append(RecordLine(hello=hello))
        if len(self._hellos) == hello.world_size:
            self._window = StepWindow(hello.world_size)
            self._set_graph(self._graph_of(hello.world_size, now_unix_s, effects), effects)
            nodes = sorted({other.node for other in self._hellos.values()})
            text = f"{hello.world_size} ranks on {', '.join(nodes)} with {hello.backend}"
            self._log(effects, now_unix_s, "hello", text)

    def _world_changed(self, hello: Hello) -> bool:
        return hello.world_size != self._window.world_size

    def _forget(self, now_unix_s: float, effects: Effects) -> None:
        """The processes were restarted: they begin again on native, at step 0."""
        if self._graph is not None:
            self._log(effects, now_unix_s, "hello", "the job's processes were restarted")
        self._hellos.clear()
        self._latest.clear()
        self._switched.clear()
        self._graph = None
        self._epoch = 0
        self._step = 0
        self._phase = Phase.SETTLED if self._hint is not None else Phase.MEASURE

    def _set_graph(self, graph: LinkGraph, effects: Effects) -> None:
        self._graph = graph
        self.document = dump(graph)
        effects.lines.append(RecordLine(graph=self.document))

    def _graph_of(self, world_size: int, now_unix_s: float, effects: Effects) -> LinkGraph:
        if self._declared is not None:
            if self._declared.world_size == world_size:
                return self._declared
            text = (
                f"the topology file has {self._declared.world_size} ranks, the job has "
                f"{world_size}; it is ignored"
            )
            self._log(effects, now_unix_s, "warning", text)
        nodes: dict[str, list[int]] = {}
        for rank, hello in sorted(self._hellos.items()):
            nodes.setdefault(hello.node, []).append(rank)
        return host_graph(nodes)

    def _see_step(self, step: StepReport) -> None:
        self._window.add(step)
        if step.module:
            return
        self._latest[step.rank] = step
        if step.step >= self._step:
            self._step = step.step
            self._step_time_s = (step.end_ns - step.begin_ns) / 1e9

    def _see_note(self, note: Note, now_unix_s: float, effects: Effects) -> None:
        if note.kind != "switched":
            self._log(effects, now_unix_s, note.kind, f"rank {note.rank}: {note.text}", note.step)
            if note.kind == "rejected" and self._phase is Phase.SWITCH:
                self._phase = Phase.SETTLED
            return
        self._switched[note.rank] = note.epoch
        ranks = [rank for rank, epoch in self._switched.items() if epoch == note.epoch]
        if len(ranks) == self._window.world_size and note.epoch != self._epoch:
            self._epoch = note.epoch
            text = f"all {len(ranks)} ranks switched to {note.text} (epoch {note.epoch})"
            self._log(effects, now_unix_s, "switch", f"step {note.step}: {text}", note.step)
            newest = self._hint is not None and self._hint.epoch == note.epoch
            if newest and self._phase is Phase.SWITCH:
                self._phase = Phase.VERIFY if self._before else Phase.SETTLED

    def _plan(self, steps: list[MeasuredStep], now_unix_s: float, effects: Effects) -> None:
        assert self._graph is not None  # noqa: S101 - decide() checked
        self._fit(steps, effects)
        sizes = [nbytes for nbytes, _ in steps[-1].transfers]
        choice = choose(
            self._graph,
            sizes,
            calibration=CALIBRATION,
            margin=self._settings.margin,
            only=self._settings.only,
        )
        self._choice = choice
        effects.lines.append(RecordLine(choice=choice))
        plan = next(plan for plan in choice.candidates if plan.algorithm == choice.chosen)
        if plan.algorithm == Algorithm.NATIVE:
            self._phase = Phase.SETTLED
            self._log(effects, now_unix_s, "plan", f"native stays: {plan.reason}")
            return
        self._before = steps
        self._publish(plan, plan.reason, effects)

    def _publish(self, plan: Plan, reason: str, effects: Effects) -> None:
        effects.hint = Hint(
            job=self._job,
            epoch=self._hint.epoch + 1 if self._hint is not None else 1,
            effective_step=self._step + 1,
            plan=plan,
            reason=reason,
        )

    def _verify(self, steps: list[MeasuredStep], now_unix_s: float, effects: Effects) -> None:
        """Compare with what was measured before the switch; go back if the plan does harm."""
        harmful, words = harm(self._before, steps, self._settings)
        words = f"{self._plans[self._epoch].algorithm}: {words}"
        self._phase = Phase.SETTLED
        if not harmful or self._settings.only is not None or self._choice is None:
            self._log(effects, now_unix_s, "fit", f"{words}; it stays")
            return
        native = next(
            plan for plan in self._choice.candidates if plan.algorithm == Algorithm.NATIVE
        )
        self._before = []
        self._log(effects, now_unix_s, "revert", f"{words}: back to native")
        self._publish(native, f"taken back: {words}", effects)

    def _fit(self, steps: list[MeasuredStep], effects: Effects) -> None:
        """Learn the cost of the link class that limits the plan in force."""
        assert self._graph is not None  # noqa: S101 - decide() checked
        plan = self._plans.get(self._epoch) or _native_plan(self._window.world_size)
        samples = [sample for step in steps for sample in step.transfers]
        try:
            fit = fit_class(plan, self._graph, samples)
        except PlanError:
            return
        if fit is not None:
            self._fits = (fit,)
            effects.lines.append(RecordLine(fit=fit))
            self._set_graph(self._graph.with_class_cost(fit.link_class, fit.planned), effects)

    def _rank_status(self, rank: int) -> RankStatus:
        hello, latest = self._hellos[rank], self._latest.get(rank)
        duration_s = (latest.end_ns - latest.begin_ns) / 1e9 if latest else 0.0
        return RankStatus(
            rank=rank,
            node=hello.node,
            pid=hello.pid,
            step=latest.step if latest else 0,
            epoch=latest.epoch if latest else 0,
            skew_s=self._skew_s(rank),
            exposed_share=exposed_s(latest) / duration_s if latest and duration_s else 0.0,
        )

    def _skew_s(self, rank: int) -> float:
        """Lateness at the first bucket against the earliest rank on the same clock."""
        own = self._latest.get(rank)
        if own is None or not own.buckets:
            return 0.0
        clock = self._hellos[rank].clock
        arrivals = [
            other.buckets[0].arrival_ns
            for other_rank, other in self._latest.items()
            if other.step == own.step and other.buckets and self._hellos[other_rank].clock == clock
        ]
        return max(0, own.buckets[0].arrival_ns - min(arrivals)) / 1e9

    def _log(
        self, effects: Effects, now_unix_s: float, kind: str, text: str, step: int | None = None
    ) -> None:
        event = Event(
            unix_s=now_unix_s, step=self._step if step is None else step, kind=kind, text=text
        )
        self._events.append(event)
        effects.lines.append(RecordLine(event=event))


def harm(
    before: Sequence[MeasuredStep], after: Sequence[MeasuredStep], settings: Settings
) -> tuple[bool, str]:
    """Whether a plan made things worse, and the numbers in words.

    It did if steps wait longer for communication, by more than a share of the whole step, although
    their buckets are hardly faster (the plan costs more than it brings); or if the buckets
    themselves take much longer. Waiting, not step time, is compared: a machine that becomes busy
    with something else slows the compute part too, and that is not the plan's doing.
    """
    transfer_before_s, transfer_after_s = (
        median(step.transfer_s for step in window) for window in (before, after)
    )
    exposed_before_s, exposed_after_s = (
        median(step.exposed_s for step in window) for window in (before, after)
    )
    step_before_s, step_after_s = (
        median(step.step_time_s for step in window) for window in (before, after)
    )
    growth = (exposed_after_s - exposed_before_s) / step_before_s
    transfer_ratio = transfer_after_s / transfer_before_s if transfer_before_s else 1.0
    harmful = growth > 0 and (
        transfer_ratio > settings.harm_ratio
        or (growth > settings.harm_share and transfer_ratio > 1 - settings.harm_share)
    )
    words = (
        f"a step's buckets take {transfer_after_s * 1e3:.2f} ms, before the switch "
        f"{transfer_before_s * 1e3:.2f} ms; a step waits {exposed_after_s * 1e3:.2f} ms of "
        f"{step_after_s * 1e3:.2f} ms, before {exposed_before_s * 1e3:.2f} ms of "
        f"{step_before_s * 1e3:.2f} ms"
    )
    return harmful, words


def _native_plan(world_size: int) -> Plan:
    return Plan(algorithm=Algorithm.NATIVE, world_size=world_size, order=tuple(range(world_size)))
