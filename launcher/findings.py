"""What a run's numbers mean, in sentences: the head of the report, and of its terminal version."""

from __future__ import annotations

from itertools import pairwise

from trainmesh.launcher.analysis import PlanStats, RunAnalysis
from trainmesh.launcher.format import duration, percent

__all__ = ["advice", "plan_efficiency", "summary"]

NOTABLE_EXPOSED_SHARE = 0.2
NOTABLE_SKEW_SHARE = 0.1


def summary(run: RunAnalysis) -> list[str]:
    """What happened, in two to four sentences."""
    if run.step_time is None:
        return list(run.missing)
    nodes = f" on {run.num_nodes} nodes" if run.num_nodes > 1 else ""
    sentences = [
        f"{run.num_steps} steps on {run.world_size} ranks{nodes} with {run.backend}, "
        f"{duration(run.step_time.median_s)} a step (median)."
    ]
    if run.shares is not None:
        share = run.shares.exposed_s / run.step_time.median_s
        sentences.append(
            f"{percent(share)} of a step was spent waiting for communication; another "
            f"{duration(run.shares.hidden_s)} of it ran unnoticed beside the backward pass."
        )
    sentences += [_switch_words(old, new) for old, new in pairwise(run.plans)]
    if len(run.plans) == 1:
        sentences.append(f"The plan was {run.plans[0].algorithm} throughout.")
    return [*sentences, *run.missing]


def _switch_words(old: PlanStats, new: PlanStats) -> str:
    text = (
        f"At step {new.first_step} all ranks switched from {old.algorithm} to {new.algorithm}; "
        f"moving a step's buckets took {duration(old.transfer_s)} before and "
        f"{duration(new.transfer_s)} after"
    )
    if old.predicted_s and new.predicted_s and new.transfer_s:
        text += (
            f" ({old.transfer_s / new.transfer_s:.2f}x, predicted "
            f"{old.predicted_s / new.predicted_s:.2f}x)"
        )
    return f"{text}."


def plan_efficiency(plan: PlanStats) -> tuple[float | None, float | None]:
    """Predicted and measured efficiency against the bound; None where it is not known."""
    if not plan.bound_s:
        return None, None
    predicted = plan.bound_s / plan.predicted_s if plan.predicted_s else None
    measured = plan.bound_s / plan.measured_largest_s if plan.measured_largest_s else None
    return predicted, measured


def advice(run: RunAnalysis) -> list[str]:
    """What to look at next; empty where nothing stands out."""
    found: list[str] = []
    if run.step_time is None or run.shares is None:
        return found
    step_s = run.step_time.median_s
    late = max(run.ranks, key=lambda rank: rank.skew_s, default=None)
    if late is not None and late.skew_s > NOTABLE_SKEW_SHARE * step_s:
        found.append(
            f"Rank {late.rank} on {late.node} is typically {duration(late.skew_s)} late with its "
            "gradients. The others wait for it: look at its input and its CPU before the network."
        )
    if run.shares.exposed_s > NOTABLE_EXPOSED_SHARE * step_s and run.plans:
        limits = ", ".join(run.plans[-1].bottleneck[:4])
        where = f" What limits it by the graph: {limits}." if limits else ""
        found.append(
            "Waiting for communication is a large part of the step. Larger batches, or "
            f"faster links, would help most.{where}"
        )
    if _faster_than_bound(run.plans):
        found.append(
            "Buckets moved faster than the bound of the link graph allows: the topology file "
            "declares links slower than they are. Correct it, or leave it out."
        )
    return found


def _faster_than_bound(plans: tuple[PlanStats, ...]) -> bool:
    return any((plan_efficiency(plan)[1] or 0.0) > 1.05 for plan in plans)
