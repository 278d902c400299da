"""A run in words: what happened, was it good, what to do next. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from math import prod
from statistics import median

from msgspec import Struct

from trainmesh.format import count, duration, percent, size
from trainmesh.launcher.analysis_types import PlanOutcome, RankSkew, RunAnalysis
from trainmesh.types import Algorithm

__all__ = ["Headline", "Tone", "headline"]

NOISE = 1.1
"""A change by less than this factor is not called one."""
HIDDEN_SHARE = 0.05
"""Below this share of exposed communication there is nothing to gain from a better plan."""
FAR_OFF = 2.0
"""A prediction that is wrong by more than this factor is worth a warning."""


class Tone(StrEnum):
    """How a headline is to be read."""

    GOOD = "good"
    NEUTRAL = "neutral"
    BAD = "bad"


class Headline(Struct, frozen=True, kw_only=True):
    """The report's first words. ``points`` are full sentences: what was measured, then what to
    make of it; ``advice`` says what to do next."""

    title: str
    tone: Tone
    points: tuple[str, ...]
    advice: str


def headline(run: RunAnalysis) -> Headline:
    """Sum up ``run``."""
    title, tone = _title(run)
    points = tuple(text for text in _points(run) if text != f"{title}.")
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
        return f"{_capital(run.choice.chosen)} was chosen, but the ranks never took it up", Tone.BAD
    return "The backend's own all-reduce was the plan to keep", Tone.GOOD


def _switch_title(plans: tuple[PlanOutcome, ...]) -> tuple[str, Tone]:
    last = plans[-1]
    moved = f"All ranks moved to {last.name} at step {last.first_step}"
    if last.switch is None:
        return moved, Tone.NEUTRAL
    speedup = prod(plan.switch.transfer_speedup for plan in plans if plan.switch is not None)
    if speedup >= NOISE:
        faster = f"communication became {speedup:.2f}x as fast"
        if last.switch.step_after_s > NOISE * last.switch.step_before_s:
            return f"{moved}; {faster}, but steps became slower", Tone.NEUTRAL
        return f"{moved}, and {faster}", Tone.GOOD
    if speedup > 1 / NOISE:
        return f"{moved}; communication takes about as long as before", Tone.NEUTRAL
    return f"{moved}, and communication became slower ({speedup:.2f}x as fast)", Tone.BAD


def _points(run: RunAnalysis) -> Iterator[str]:
    yield from (f"{_capital(text)}." for text in run.unmet)
    if run.step_time is not None:
        time = run.step_time
        text = (
            f"A step took {duration(time.median_s)} at the median of {time.num_samples} steps "
            f"(5th to 95th percentile: {duration(time.p5_s)} to {duration(time.p95_s)})"
        )
        if run.split is not None and run.world_size > 1:
            share = percent(run.split.exposed_share)
            text += f"; {share} of it was spent waiting for communication"
        yield f"{text}."
    if run.plans:
        yield from _plan_points(run.plans[-1])
    if run.graph is not None and run.choice is not None:
        yield _sources(run)


def _plan_points(last: PlanOutcome) -> Iterator[str]:
    effect = last.switch
    if effect is not None:
        yield (
            f"Measured in the {count(effect.num_before, 'step')} before the switch and the "
            f"{effect.num_after} after it: a step's buckets moved in "
            f"{duration(effect.transfer_before_s)}, then in {duration(effect.transfer_after_s)}; "
            f"a step took {duration(effect.step_before_s)}, then {duration(effect.step_after_s)}."
        )
    if last.plan is None or not last.measured_s or not last.plan.predicted_s:
        return
    predicted_s = last.plan.predicted_s
    yield (
        f"For a bucket of {size(last.plan.nbytes)} {last.name} was predicted to take "
        f"{duration(predicted_s)} and took {duration(last.measured_s)}; no algorithm can take "
        f"less than {duration(last.plan.bound_s)} on the link graph."
    )
    if last.measured_s < last.plan.bound_s:
        yield (
            "It was faster than the graph allows, so the graph calls its links slower than they "
            "are here: trust what was measured, not what was predicted."
        )
    elif last.measured_s > FAR_OFF * predicted_s:
        yield (
            f"Measured is {last.measured_s / predicted_s:.1f} times predicted: something that the "
            "graph does not know (busy CPUs, the transport, other traffic) limits this job."
        )


def _sources(run: RunAnalysis) -> str:
    total, measured = sum(run.link_sources.values()), run.link_sources.get("measured", 0)
    if run.link_sources.get("assumed"):
        where = "no topology was declared, so links were assumed to be equal"
    else:
        where = "as declared in the topology file"
    if measured == 0:
        return f"Predictions and the bound come from the link graph, {where}; no link was measured."
    rest = "" if measured == total else f"; the other {total - measured}: {where}"
    return (
        f"Predictions and the bound come from the link graph: {measured} of its {total} links "
        f"with costs fitted to this run's bucket times{rest}."
    )


def _advice(run: RunAnalysis) -> str:
    if run.step_time is None or run.split is None:
        return "Train for at least a few dozen steps with DistributedDataParallel and look again."
    if run.world_size == 1:
        return "Start more than one rank (--nproc-per-node) to see communication."
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
    return (
        f"If all communication were hidden, steps would be {1 / (1 - share):.2f}x as fast at most. "
        "Gradient accumulation (no_sync) or a larger batch leave less of it to wait for."
    )


def _lateness_advice(skew: tuple[RankSkew, ...], exposed: float) -> str | None:
    """Words about ranks that wait for each other rather than for the network."""
    if len(skew) < 2:
        return None
    *others, latest = sorted(skew, key=lambda rank: rank.median_s)
    usual_s = median(rank.median_s for rank in others)
    if latest.median_s - usual_s > exposed / 4:
        return (
            f"Rank {latest.rank} is ready {duration(latest.median_s)} after the earliest rank "
            f"(median), the others {duration(usual_s)}, while a step waits {duration(exposed)} for "
            "communication: find what slows that rank (data loading, a shared CPU, a slower "
            "device) before the network."
        )
    if usual_s > exposed / 2:
        return (
            f"Ranks are ready {duration(usual_s)} after the earliest one (median), in changing "
            f"order, while a step waits {duration(exposed)} for communication: much of that is "
            "waiting for each other, as more ranks than free CPU cores or uneven batches cause it."
        )
    return None


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
