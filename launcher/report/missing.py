"""What a report can't show, and why: a sentence each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainmesh.coordinator.measure import FIRST_STEP, MeasuredStep
from trainmesh.coordinator.tuning.replicas import Replicas
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.launcher.report.analysis_types import PlanOutcome
from trainmesh.launcher.report.run_sample import RunSample, Start
from trainmesh.types import Algorithm, StepReport
from trainmesh.units import count

__all__ = ["Held", "describe_missing"]

MAX_STRIDE = 64
"""A long record keeps one step in so many (``RecordWriter``): the last one may be missing."""


@dataclass(frozen=True)
class Held:
    """What there is to show."""

    world_size: int
    reports: Sequence[StepReport]
    """Of steps that are measured."""
    num_complete: int
    """Steps that all ranks have reported."""
    measured: Sequence[MeasuredStep]
    """Those of them that were timed."""
    plans: Sequence[PlanOutcome]
    corrupt_lines: int
    num_known_steps: int
    """Steps that the job is known to have done, recorded or not; 0: nothing is known."""


def describe_missing(sample: RunSample, held: Held) -> tuple[str, ...]:
    """A sentence for everything that a report of ``sample`` can't show."""
    found = []
    if held.corrupt_lines:
        was = "was" if held.corrupt_lines == 1 else "were"
        found.append(
            f"{count(held.corrupt_lines, 'line')} of the record could not be read and {was} left "
            "out (a job that is killed may leave its last line unfinished)."
        )
    found += _lost_steps(sample, held.num_known_steps)
    found += _other_modules(sample.start)
    found += _missing_steps(sample, held)
    ends = sum(event.kind == "process" for event in sample.events)
    if ends:
        found.append(
            f"Processes of trainmesh itself ended during the run ({count(ends, 'time')}; the "
            "events say which, and why): what they would have measured or planned meanwhile is "
            "missing."
        )
    if sample.num_starts > 1:
        found.append(
            f"The job's processes were started {sample.num_starts} times; the figures are of the "
            "last start that has steps."
        )
    if sample.graph is None and held.world_size > 1:
        found.append("The record holds no link graph, so there is no picture of it.")
    if sample.choice is None and held.world_size > 1:
        ran = " and ".join(dict.fromkeys(plan.name for plan in held.plans))
        what = f" What ran: {ran}." if ran else ""
        found.append(f"No plans were compared: {_why_no_choice(sample, held.measured)}.{what}")
    return tuple(found)


def _why_no_choice(sample: RunSample, measured: Sequence[MeasuredStep]) -> str:
    hellos = sample.start.hellos
    world_size = max((hello.world_size for hello in hellos.values()), default=0)
    kept = next((event.text for event in sample.events if event.kind == "hook_kept"), None)
    if not hellos or len(hellos) < world_size:
        return f"only {len(hellos)} of {world_size or 'the'} ranks introduced themselves"
    if Replicas.of(hellos).are_single:
        return "each shard has one replica, so nothing is all-reduced"
    if not Replicas.of(hellos).follows_plans:
        return (
            "gradients are not all-reduced by all ranks (FSDP2 without replicas reduce-scatters "
            "them), and plans are made for all-reduces"
        )
    if kept is not None:
        return f"the script's own communication hook is kept ({kept}), which no plan replaces"
    most = max(Counter(step.epoch for step in measured).values(), default=0)
    if most < Settings.min_steps:
        return (
            f"that takes {Settings.min_steps} measured steps of all ranks in a row, and the job "
            f"had {most} before it ended or changed"
        )
    if any(item.value == Algorithm.NATIVE for item in sample.asked):
        return "native was asked for"
    return "the coordinator did not get to it before the job ended"


def _lost_steps(sample: RunSample, num_known_steps: int) -> list[str]:
    """Steps that the job has done, and that its record does not hold."""
    main = sample.start.main
    recorded = main.last_step + 1 if main.num_steps else 0
    if num_known_steps <= (recorded and recorded + MAX_STRIDE):
        return []
    held = f"the last one in it is step {main.last_step}" if recorded else "it holds none"
    return [
        f"The job did {count(num_known_steps, 'step')} at least, which the record doesn't hold: "
        f"{held}{_describe_trouble(sample)}."
    ]


def _other_modules(start: Start) -> list[str]:
    main, first = start.main, start.first
    if not main.number:
        return []
    did = count(first.most_steps, "step") if first is not None else "fewer"
    return [
        f"The figures are of DDP module {main.number + 1} of {start.num_modules} (in the order in "
        "which they first communicated), which did the most steps. Plans are made by the steps of "
        f"the first one, which did {did}."
    ]


def _describe_trouble(sample: RunSample) -> str:
    has_trouble = any(event.kind in ("process", "warning") for event in sample.events)
    return " (the events say what went wrong)" if has_trouble else ""


def _missing_steps(sample: RunSample, held: Held) -> list[str]:
    start, main, world_size = sample.start, sample.start.main, held.world_size
    if not main.num_steps and held.num_known_steps:
        return []  # they are lost, which is said
    if not main.num_steps:
        trouble = _describe_trouble(sample)
        lost = f", or what was measured is lost{trouble}" if trouble else ""
        return [
            "No step was recorded: the script ended before its first step was over, or it never "
            f"wraps a model in DistributedDataParallel or fully_shard{lost}."
        ]
    if not held.reports:
        return [
            f"Only steps 0 to {FIRST_STEP - 1} were recorded; they are never measured, because DDP "
            "builds its buckets in them."
        ]
    if world_size == 1:
        return ["One rank has nobody to communicate with: there is nothing to time or to plan."]
    if Replicas.of(start.hellos).are_single:
        return [
            "Each shard has one replica, so nothing is all-reduced. The reduce-scatters among the "
            "shards are not timed on a mesh of replicas: what a step waits for is not known."
        ]
    if not any(report.buckets for report in held.reports):
        return ["No bucket times were recorded: a built-in C++ communication hook hides them."]
    silent = sorted(set(range(world_size)) - set(main.num_steps))
    if silent:
        names = ", ".join(map(str, silent[:8])) + (", ..." if len(silent) > 8 else "")
        return [
            f"No step of rank{'s' if len(silent) > 1 else ''} {names} was recorded, so there are "
            "no transfer times and no arrival skew, which need all ranks."
        ]
    if not held.num_complete:
        return ["No step was recorded by all ranks, so transfer times and skew are missing."]
    return []
