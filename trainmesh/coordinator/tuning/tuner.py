"""The order of decisions: measure, turn one knob, judge it, settle, watch.

First come the user's settings, then the links, if they are unknown, then the knobs. When nothing is
left to gain, the job is settled and its steps are watched. If they change, or if a link is known to
be slow, a probe measures the links, and the tuner begins again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from trainmesh.coordinator.measure import MeasuredStep, StepWindow
from trainmesh.coordinator.tuning.change_detection import baseline, change
from trainmesh.coordinator.tuning.comm_config import CommConfig, same_way
from trainmesh.coordinator.tuning.knobs import Knobs, Trial
from trainmesh.coordinator.tuning.link_state import Links
from trainmesh.coordinator.tuning.probe_schedule import ProbeSchedule
from trainmesh.coordinator.tuning.replan import Planned
from trainmesh.coordinator.tuning.settings import Knob, Settings
from trainmesh.errors import GraphError, PlanError
from trainmesh.topology.measure.fit import fit_class
from trainmesh.types import Algorithm, Choice, ClassFit, CodecCost, Hint, PairTime

__all__ = ["Tuner", "Proposal", "Turn"]

MAX_FAILED_SWITCHES = 6
"""Above, the wait after a failed switch grows no further."""
WARM_UP_STEPS = 2
"""After a switch: buffers are made, TCP opens its windows."""


class TunerPhase(StrEnum):
    """MEASURE the configuration in force, wait for all ranks to SWITCH, for the reports of a PROBE,
    VERIFY a change, SETTLED."""

    MEASURE = "measure"
    SWITCH = "switch"
    PROBE = "probe"
    VERIFY = "verify"
    SETTLED = "settled"


@dataclass(frozen=True)
class Proposal:
    """What all ranks are to do next; ``probe_bytes`` as in a Hint."""

    comm_config: CommConfig
    reason: str
    probe_bytes: int = 0
    trial: Trial | None = None


@dataclass
class Turn:
    """The results of one event: messages by kind, the comparison and the fits."""

    proposal: Proposal | None = None
    words: list[tuple[str, str]] = field(default_factory=list)
    choice: Choice | None = None
    fit: ClassFit | None = None

    def say(self, kind: str, text: str) -> None:
        self.words.append((kind, text))


class Tuner:
    """Decides about one start of a job's processes, from when all ranks are known."""

    def __init__(self, settings: Settings, links: Links, world_size: int, backend: str) -> None:
        self.links = links
        self.knobs = Knobs(settings, backend)
        self.prober = ProbeSchedule(settings, links)
        self._settings = settings
        self._current = CommConfig.native(world_size)
        self._phase = TunerPhase.MEASURE
        self._proposal: Proposal | None = None
        self._awaited: Hint | None = None
        self._trial: Trial | None = None
        self._rollback: Proposal | None = None
        """To be proposed until it is in force."""
        self._is_current_known = True
        self.proven: CommConfig | None = None
        """The last configuration that was judged and stayed, or with which the job was settled."""
        self._evidence = _Evidence(settings.min_steps)
        self._reprobe_reason = ""
        """Why the estimated state of the links may be wrong; empty if there is no reason."""
        self._applies_user_settings = True
        self._denied: int | None = None
        """The version of the links on which the plan that was asked for can't be made."""
        self._refit = True
        self._said: tuple[int, str] | None = None
        """The links and the algorithm for which it was reported that the plan stays."""
        self._usual_s: dict[tuple[int, ...], float] = {}
        self._next_plan_s = -math.inf
        self._failed_switches = 0
        """Plans that were taken back, less those that stayed: each doubles the time to the next."""

    @property
    def awaited(self) -> Hint | None:
        """The hint that the ranks are to take up; None if none is on its way."""
        return self._awaited if self._phase is TunerPhase.SWITCH else None

    def take_up(self, comm_config: CommConfig, reason: str) -> None:
        """Have the ranks run ``comm_config``, whatever they run now: they ran it before a restart,
        or nobody knows which configuration is in force."""
        self._rollback = Proposal(comm_config, reason)
        self._is_current_known = False
        if comm_config.plan.algorithm != Algorithm.NATIVE and not self.links.is_probed:
            self._reprobe_reason = "the plan in force is from before"

    def hint(self, hint: Hint) -> None:
        """The store holds ``hint`` now; the ranks will switch to it, or reject it."""
        own, self._proposal = self._proposal, None
        is_own = own is not None and _same(own.comm_config, CommConfig.of(hint))
        if own is not None and is_own:
            self._trial = own.trial
        elif self.awaited is None or not _same(CommConfig.of(self.awaited), CommConfig.of(hint)):
            self._trial = None  # else the same again, under another epoch
        else:
            is_own = True
        self._rollback = None
        self._awaited = hint
        if not is_own and hint.plan.algorithm != Algorithm.NATIVE and not self.links.is_probed:
            self._reprobe_reason = "the plan in force is from before"
        self._phase = TunerPhase.SWITCH

    def switched(self, hint: Hint, step: int, now_s: float) -> None:
        """All ranks run ``hint`` from ``step`` on."""
        new = CommConfig.of(hint)
        if not _same(new, self._current) or not self._is_current_known:
            self._is_current_known = True
            self._evidence = _Evidence(self._settings.min_steps, hint.epoch, step + WARM_UP_STEPS)
        if not same_way(new.plan, self._current.plan):
            self._next_plan_s = now_s + self._settings.min_plan_s * 2**self._failed_switches
        self._current = new
        if self._phase is not TunerPhase.SWITCH or hint != self._awaited:
            return
        if hint.probe_bytes:
            self.prober.begin(hint.epoch, now_s)
            self._phase = TunerPhase.PROBE
        else:
            self._phase = TunerPhase.VERIFY if self._trial is not None else TunerPhase.MEASURE

    def rejected(self, epoch: int) -> None:
        """Some rank can't carry ``epoch`` out; all stay as they are."""
        hint = self._awaited
        if hint is None or hint.epoch != epoch or self._phase is not TunerPhase.SWITCH:
            return
        if self._trial is not None:
            self.knobs.block(self._trial, CommConfig.of(hint))
        elif hint.probe_bytes:
            self.prober.block()
        else:
            self._applies_user_settings = False
        self._trial = None
        self._phase = TunerPhase.MEASURE

    def codec_costs(self, costs: Iterable[CodecCost]) -> None:
        """Take a rank's report on codecs. If one is new, it may be time to try it."""
        for cost in costs:
            if self.knobs.see_cost(cost) and self._phase is TunerPhase.SETTLED:
                self._phase = TunerPhase.MEASURE

    def pairs(self, pairs: Iterable[PairTime]) -> None:
        """What ranks report of a probe."""
        self.prober.add(pairs)

    def turn(self, window: StepWindow, now_s: float) -> Turn:
        """The leader's turn, about once a second: publish, judge, watch or leave alone."""
        turn = Turn()
        steps = self._evidence.of(window)
        if self._phase is TunerPhase.PROBE and self.prober.is_over(now_s):
            self._finish_probe(turn)
        if self._rollback is not None:
            turn.proposal = self._rollback
        elif self._phase is TunerPhase.MEASURE:
            self._apply_user_settings(steps, turn)
            if turn.proposal is None and self._evidence.is_enough(steps):
                self._improve(steps, now_s, turn)
        elif self._phase is TunerPhase.VERIFY and self._evidence.is_enough(steps):
            self._verify(steps, turn)
        elif self._phase is TunerPhase.SETTLED:
            self._watch(steps, now_s, turn)
        self._proposal = turn.proposal
        return turn

    def _apply_user_settings(self, steps: Sequence[MeasuredStep], turn: Turn) -> None:
        """Apply the user's settings, which need no evidence: neither a step nor the links. The plan
        is made again when the links are known."""
        only = self._settings.only
        wanted = self.knobs.asked_for(self._current)
        if not self._applies_user_settings:
            return
        reason = f"asked for: {wanted.words}"
        version = self.links.now.version
        if only not in (None, self._current.plan.algorithm) and self._denied != version:
            planned = self._plan(steps)
            turn.choice = planned.choice
            if planned.plan is not None:
                wanted, reason = replace(wanted, plan=planned.plan), planned.reason
            else:
                self._denied = version
        if not _same(wanted, self._current):
            turn.proposal = Proposal(wanted, reason)

    def _improve(self, steps: Sequence[MeasuredStep], now_s: float, turn: Turn) -> None:
        """Turn the first knob that is predicted to help; settle if none is."""
        if self._ask_links(now_s, turn) or self._replan(steps, now_s, turn):
            return
        current, graph = self._current, self.links.now
        for knob, best in ((Knob.FUSION, self.knobs.fusion), (Knob.CODEC, self.knobs.codec)):
            comm_config, reason = best(steps, current, graph)
            if comm_config != current:
                turn.proposal = Proposal(comm_config, reason, trial=Trial(knob, current, steps))
                return
        if words := self.knobs.advice(steps, current, graph):
            turn.say("note", words)
        self._usual_s = baseline(steps)
        self._evidence = self._evidence.settled(steps)
        self.proven = current
        self._phase = TunerPhase.SETTLED

    def _ask_links(self, now_s: float, turn: Turn) -> bool:
        """Probe, if no plan can be made without it; True if the ranks are to do it now."""
        doubt = "no topology is given" if self.links.are_unknown else self._reprobe_reason
        if not doubt or not self.prober.is_due(now_s, urgent=True):
            return False
        self._probe(f"measure the links: {doubt}", turn)
        return True

    def _probe(self, reason: str, turn: Turn) -> None:
        turn.proposal = Proposal(self._current, reason, probe_bytes=self.prober.nbytes)

    def _replan(self, steps: Sequence[MeasuredStep], now_s: float, turn: Turn) -> bool:
        """Propose a better plan; True if there is one, even if it is too early for it."""
        if not self._settings.plans_matter:
            return False
        if self._refit:
            self._fit(steps, turn)
        planned = self._plan(steps)
        if planned.plan is None:
            if self._said != self._topic:
                self._said = self._topic
                turn.choice = planned.choice
                if self._denied is None:  # the coordinator has said that
                    turn.say("plan", f"{self._current.plan.algorithm} stays: {planned.reason}")
            return False
        if now_s >= self._next_plan_s:
            turn.choice = planned.choice
            turn.proposal = Proposal(
                replace(self._current, plan=planned.plan),
                planned.reason,
                trial=Trial(Knob.PLAN, self._current, steps),
            )
        return True

    def _plan(self, steps: Sequence[MeasuredStep]) -> Planned:
        degraded = bool(self.links.slow)
        return self.knobs.plan(steps, self._current, self.links.now, degraded=degraded)

    @property
    def _topic(self) -> tuple[int, str]:
        return self.links.now.version, self._current.plan.algorithm

    def _fit(self, steps: Sequence[MeasuredStep], turn: Turn) -> None:
        """Learn the cost of the link class that limits the plan in force."""
        self._refit = False
        samples = [sample for step in steps for sample in step.by_size]
        try:
            fit = fit_class(self._current.plan, self.links.first, samples)
        except (PlanError, GraphError):  # a plug-in's plan, or one for another graph
            return
        if fit is not None and self.links.fit(fit):
            turn.fit = fit

    def _verify(self, steps: Sequence[MeasuredStep], turn: Turn) -> None:
        """Compare with the measurements before the change; go back if the change doesn't
        deliver."""
        trial, self._trial = self._trial, None
        assert trial is not None  # noqa: S101 - the phase says so
        stays, words = self.knobs.judge(trial, self._current, steps)
        learned, is_odd = self.knobs.learn(trial, self._current, steps, self.links.now)
        self._reprobe_reason = (
            "the new plan is far from its prediction" if is_odd else self._reprobe_reason
        )
        words = f"{self._current.words}: {words}" + (f" ({learned})" if learned else "")
        self._phase = TunerPhase.MEASURE
        if stays:
            self.proven = self._current
            self._said = self._topic
            self._failed_switches = max(0, self._failed_switches - 1)
            turn.say("fit", f"{words}; it stays")
            return
        self._failed_switches = min(MAX_FAILED_SWITCHES, self._failed_switches + 1)
        self.knobs.block(trial, self._current)
        turn.say("revert", f"{words}: back to {trial.previous.words}")
        self._rollback = Proposal(trial.previous, f"taken back: {words}")
        turn.proposal = self._rollback

    def _watch(self, steps: Sequence[MeasuredStep], now_s: float, turn: Turn) -> None:
        """Look for a change in the steps since the job was settled."""
        fresh = self._evidence.fresh(steps)
        ratio = change(fresh, self._usual_s, self._settings)
        if ratio is None:
            slow = self.links.slow
            if slow and self.prober.is_due(now_s, urgent=False):
                self._probe(f"measure the links: has {slow[0]} healed?", turn)
            else:
                self._ask_links(now_s, turn)
            return
        text = f"a step's communication takes {ratio:.2f} times as long as it did"
        count = self._settings.change_steps
        if self.prober.is_due(now_s, urgent=True):
            self._evidence = self._evidence.changed(fresh[-count].step, count)
            self._probe(f"measure the links: {text}", turn)
        elif not self.prober.is_possible:
            self._evidence = self._evidence.changed(fresh[-count].step, count)
            self._phase = TunerPhase.MEASURE
            self._refit = True
            self.knobs.unblock()
            turn.say("fit", text)

    def _finish_probe(self, turn: Turn) -> None:
        words = self.prober.finish()
        self._phase = TunerPhase.MEASURE
        self._reprobe_reason = ""
        if words:
            self.knobs.unblock()
        if words is None:
            turn.say("warning", "probe: no rank has reported what it measured")
        elif words or self.prober.in_vain == 1:  # said once: they are repeated as long as needed
            turn.say("fit", f"probe: {words or 'the links are as they were'}")


class _Evidence:
    """Which measured steps describe the present: those since the configuration in force was taken
    up, whatever was probed meanwhile, or since something changed."""

    def __init__(
        self, needed: int, epoch: int = 0, first: int = 0, settled: int | None = None
    ) -> None:
        self._needed = needed
        self._epoch = epoch
        self._first = first
        self._settled = settled

    def of(self, window: StepWindow) -> list[MeasuredStep]:
        return [
            step for step in window.steps if step.epoch >= self._epoch and step.step >= self._first
        ]

    def is_enough(self, steps: Sequence[MeasuredStep]) -> bool:
        return len(steps) >= self._needed

    def fresh(self, steps: Sequence[MeasuredStep]) -> list[MeasuredStep]:
        """Those after the job was settled."""
        return [step for step in steps if self._settled is None or step.step > self._settled]

    def settled(self, steps: Sequence[MeasuredStep]) -> _Evidence:
        return _Evidence(self._needed, self._epoch, self._first, steps[-1].step)

    def changed(self, first: int, needed: int) -> _Evidence:
        """Only steps from ``first`` on count any more."""
        return _Evidence(needed, self._epoch, first)


def _same(a: CommConfig, b: CommConfig) -> bool:
    return same_way(a.plan, b.plan) and a.fusion_bytes == b.fusion_bytes and a.codec == b.codec
