"""A run in words: what happened, was it good, what to do next. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import StrEnum
from statistics import median

from msgspec import Struct

from trainmesh.launcher.report.analysis_types import (
    PlanOutcome,
    RankSkew,
    RunAnalysis,
    SwitchEffect,
)
from trainmesh.launcher.report.describe_outcome import describe_attempts, outcome_title
from trainmesh.types import Algorithm, LinkOrigin, Plan
from trainmesh.units import count, duration, percent, quotient, size, speedup

__all__ = ["Headline", "Tone", "headline"]

NOISE = 1.1
"""A change by less than this factor is not called one."""
MIN_COMPARED_STEPS = 4
"""How many steps before and after a switch are needed: one late step would decide the median of
fewer."""
HIDDEN_SHARE = 0.05
"""Below this share of exposed communication there is nothing to gain from a better plan."""
MAX_SWITCHES = 4
"""So many of the last switches have a sentence each."""
MOST_EXPOSED = 0.999
"""If a step did nothing but wait, there would be no bound on the gain from hiding communication."""
MAX_NAMED = 8
"""Ranks in one sentence."""
STRAGGLER_SHARE = 0.75
"""Ranks that arrive last by chance take turns; one that is slow itself is last most of the time."""
FAR_OFF = 2.0
"""A prediction that is off by more than this factor is worth a warning."""


class Tone(StrEnum):
    """How a headline is to be read."""

    GOOD = "good"
    NEUTRAL = "neutral"
    BAD = "bad"


class Headline(Struct, frozen=True, kw_only=True):
    """The report's headline. ``points`` are full sentences: measurements first, then conclusions;
    ``advice`` says what to do next."""

    title: str
    tone: Tone
    points: tuple[str, ...]
    advice: str


def headline(run: RunAnalysis) -> Headline:
    """Sum up ``run``."""
    title, tone = _title(run)
    points = tuple(text for text in _points(run) if text != f"{title}.")
    recorded = run.last_step + 1 if run.num_steps else 0
    ended = outcome_title(run.outcome, recorded, run.num_known_steps)
    if ended is not None:
        measured = () if run.step_time is None else (f"{title}.",)
        title, tone, points = ended, Tone.BAD, (*measured, *points)
    points = (*describe_attempts(run.outcome), *points)
    return Headline(title=title, tone=tone, points=points, advice=_advice(run))


def _title(run: RunAnalysis) -> tuple[str, Tone]:
    if run.step_time is None:
        return "Nothing was measured", Tone.BAD
    if run.world_size == 1:
        return "One rank: there was nothing to communicate", Tone.NEUTRAL
    if run.unmet:
        return _capital(run.unmet[0]), Tone.BAD
    first, last = run.plans[0], run.plans[-1]
    if last.name == first.name and any(event.kind == "revert" for event in run.events):
        return "What was tried did not help, and was taken back", Tone.NEUTRAL
    if last is not first:
        return _switch_title(run.plans)
    if last.epoch:
        return f"The job ran {last.name} throughout", Tone.NEUTRAL
    if run.choice is None:
        return f"The job was measured under {last.name}; no plans were compared", Tone.NEUTRAL
    if run.choice.chosen != Algorithm.NATIVE:
        chosen = _capital(run.choice.chosen)
        return f"{chosen} was chosen, but not yet taken up when the job ended", Tone.NEUTRAL
    return "The backend's own all-reduce was the plan to keep", Tone.GOOD


def _switch_title(plans: tuple[PlanOutcome, ...]) -> tuple[str, Tone]:
    last = plans[-1]
    moved = f"All ranks moved to {last.name} at step {last.first_step}"
    if last.switch is None:
        return moved, Tone.NEUTRAL
    effect = last.switch
    if (least := min(effect.num_before, effect.num_after)) < MIN_COMPARED_STEPS:
        few = f"{count(least, 'measured step')} {'is' if least == 1 else 'are'} too few to compare"
        return f"{moved}; {few}", Tone.NEUTRAL
    ratio = effect.transfer_speedup
    if ratio >= NOISE:
        faster = f"communication became {ratio:.2f}x as fast"
        if effect.step_after_s > NOISE * effect.step_before_s:
            return f"{moved}; {faster}, but steps became slower", Tone.NEUTRAL
        return f"{moved}, and {faster}", Tone.GOOD
    if ratio > 1 / NOISE:
        return f"{moved}; communication takes about as long as before", Tone.NEUTRAL
    return f"{moved}, and communication became slower ({ratio:.2f}x as fast)", Tone.BAD


def _points(run: RunAnalysis) -> Iterator[str]:
    yield from (f"{_capital(text)}." for text in run.unmet)
    if run.step_time is not None:
        time = run.step_time
        text = (
            f"A step took {duration(time.median_s)} at the median of {time.num_samples} steps "
            f"(5th to 95th percentile: {duration(time.p5_s)} to {duration(time.p95_s)})"
            if time.num_samples > 1
            else f"The one step that was measured took {duration(time.median_s)}"
        )
        if run.split is not None and run.world_size > 1:
            share = percent(run.split.exposed_share)
            text += f"; {share} of it was spent waiting for communication"
        yield f"{text}."
    if run.world_size == 1:
        return
    switches = [plan for plan in run.plans if plan.switch is not None]
    yield from (
        _switch_point(plan, plan.switch) for plan in switches[-MAX_SWITCHES:] if plan.switch
    )
    if run.plans:
        yield from _plan_points(run.plans[-1], run.measured_by)
    yield from (
        _exceeded(plan, plan.plan) for plan in run.plans if plan.exceeds_bound and plan.plan
    )
    if run.graph is not None and run.choice is not None:
        yield _sources(run)


def _switch_point(new: PlanOutcome, effect: SwitchEffect) -> str:
    return (
        f"Switch to {new.name} at step {new.first_step}: in the "
        f"{count(effect.num_before, 'step')} before it a step's buckets moved in "
        f"{duration(effect.transfer_before_s)}, in the {effect.num_after} after it in "
        f"{duration(effect.transfer_after_s)} "
        f"({speedup(effect.transfer_before_s, effect.transfer_after_s)} as fast); a step took "
        f"{duration(effect.step_before_s)}, then {duration(effect.step_after_s)}."
    )


def _exceeded(outcome: PlanOutcome, plan: Plan) -> str:
    """A bound was beaten: the links differ from the graph that it was computed from."""
    why = {
        LinkOrigin.GIVEN: "the topology that was declared or assumed calls links slower than they "
        "are here",
        LinkOrigin.BUCKETS: "the links' costs were fitted to earlier bucket times, in which "
        "something else (busy CPUs, late ranks) counted too",
        LinkOrigin.PROBES: "the links are faster than when they were probed, or other traffic "
        "slowed the probe",
    }[outcome.origin]
    took_s = outcome.measured_s or 0.0
    return (
        f"Under {outcome.name} (epoch {outcome.epoch}) a bucket of {size(plan.nbytes)} took "
        f"{duration(took_s)}, less than the bound of {duration(plan.bound_s)}: {why}. So that "
        "bound is none, and no efficiency is given: trust what was measured."
    )


def _plan_points(last: PlanOutcome, measured_by: LinkOrigin) -> Iterator[str]:
    if last.plan is None or not last.measured_s or not last.plan.predicted_s:
        return
    predicted_s = last.plan.predicted_s
    yield (
        f"For a bucket of {size(last.plan.nbytes)} {last.name} was predicted to take "
        f"{duration(predicted_s)} and took {duration(last.measured_s)}"
        + (
            "."
            if last.is_bound_refuted
            else f"; no algorithm can take less than {duration(last.plan.bound_s)} on the link "
            "graph."
        )
    )
    ratio = quotient(last.measured_s, predicted_s)
    if ratio > FAR_OFF:
        if measured_by is LinkOrigin.PROBES and last.origin is not LinkOrigin.PROBES:
            yield (
                f"Measured is {ratio:.1f} times predicted, for links as they were taken to be at "
                "first: what probes found of them later is among the events."
            )
            return
        yield (
            f"Measured is {ratio:.1f} times predicted: something that the "
            "graph does not know (busy CPUs, the transport, other traffic) limits this job."
        )


def _sources(run: RunAnalysis) -> str:
    total, measured = sum(run.link_sources.values()), run.link_sources.get("measured", 0)
    if run.link_sources.get("assumed"):
        where = "no topology was declared, so links were assumed to be equal"
    else:
        where = "as declared in the topology file"
    graph = "Predictions and bounds come from the link graph"
    if measured == 0:
        return f"{graph}, {where}; no link was measured."
    rest = "" if measured == total else f"; the other {total - measured}: {where}"
    how = {
        LinkOrigin.BUCKETS: "fitted to this run's bucket times",
        LinkOrigin.PROBES: "measured by probes between two steps",
    }.get(run.measured_by, "measured before this run")
    return f"{graph}. In the end {measured} of its {total} links had costs {how}{rest}."


def _advice(run: RunAnalysis) -> str:
    outcome = run.outcome
    if outcome is not None and outcome.exit_code and not outcome.signal:
        return (
            "Find out why it failed first: what that rank has printed is above torchrun's table of "
            "failed workers, or in torchrun's --log-dir."
            if outcome.failures
            else "Find out why it failed first."
        )
    if run.step_time is not None and run.world_size == 1:
        return "Start more than one rank (--nproc-per-node) to see communication."
    if run.step_time is not None and run.split is None:
        return "What a step waits for was not timed: look at compute and data loading first."
    if run.step_time is None or run.split is None:
        return "Train for at least a few dozen steps with DistributedDataParallel and look again."
    share = run.split.exposed_share
    if share < HIDDEN_SHARE:
        return (
            f"Only {percent(share)} of a step waits for communication, and no plan can gain more "
            "than that. Look at compute and data loading first."
        )
    late = _lateness_advice(run.skew, run.split.exposed_s)
    if late is not None:
        return late
    if run.link_sources.get("assumed") and len(run.nodes) > 1:
        return "Declare the links with --topology, so that plans can be compared on them."
    computing = 1 - min(round(share, 3), MOST_EXPOSED)
    return (
        f"If all communication were hidden, steps would be {1 / computing:.2f}x as fast at most. "
        "Gradient accumulation (no_sync) or a larger batch leave less of it to wait for."
    )


def _lateness_advice(skew: tuple[RankSkew, ...], exposed: float) -> str | None:
    """Sentences on ranks that wait for each other rather than for the network."""
    if len(skew) < 2:
        return None
    late = _stragglers(skew, exposed)
    if late:
        names = f"{_ranks(late)} {'is' if len(late) == 1 else 'are'}"
        punctual = [rank.median_s for rank in skew if rank not in late]
        return (
            f"{names} ready {_range([rank.median_s for rank in late])} after the earliest rank "
            f"(median), {_others(punctual)}, while a step waits {duration(exposed)} for "
            f"communication: find what slows {'it' if len(late) == 1 else 'them'} (data loading, a "
            "shared CPU, a slower device) before the network."
        )
    usual_s = median(rank.median_s for rank in skew)
    if usual_s > exposed / 2:
        return (
            f"Ranks are ready {duration(usual_s)} after the earliest one (median), while a step "
            f"waits {duration(exposed)} for communication: much of that is waiting for each "
            "other, as more ranks than free CPU cores or uneven batches cause it."
        )
    return None


def _stragglers(skew: tuple[RankSkew, ...], exposed: float) -> list[RankSkew]:
    """The ranks that the others wait for: at most half of all, later than the others by a good part
    of the waiting, and nearly always the last. Ranks that take turns at being last don't count."""
    ranks = sorted(skew, key=lambda rank: rank.median_s)
    least = (len(ranks) + 1) // 2
    gaps = [ranks[n].median_s - ranks[n - 1].median_s for n in range(least, len(ranks))]
    widest = max(gaps, default=0.0)
    late = ranks[least + gaps.index(widest) :] if gaps else []
    share = sum(rank.last_share for rank in late)
    is_clear = widest > exposed / 4 and share >= STRAGGLER_SHARE
    return sorted(late, key=lambda rank: rank.rank) if is_clear else []


def _ranks(late: list[RankSkew]) -> str:
    if len(late) == 1:
        return f"Rank {late[0].rank}"
    shown = ", ".join(str(rank.rank) for rank in late[:MAX_NAMED])
    return f"Ranks {shown}" + (", ..." if len(late) > MAX_NAMED else "")


def _others(medians_s: list[float]) -> str:
    if len(medians_s) == 1:
        return f"the other {duration(medians_s[0])}"
    return f"the others {_range(medians_s)}"


def _range(values_s: Collection[float]) -> str:
    low, high = duration(min(values_s)), duration(max(values_s))
    return low if low == high else f"{low} to {high}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
