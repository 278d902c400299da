"""Choose a plan: every candidate proven, predicted and held against the bound, with the reason.

Third parties add planners by the entry-point group ``trainmesh.planners``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol

from msgspec.structs import replace

from trainmesh.errors import ConfigError, PlanError
from trainmesh.topology import hierarchical, native, ring
from trainmesh.topology.bound import Bound, bound
from trainmesh.topology.cost import predict
from trainmesh.topology.explain import choice_words, reason
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.validate import validate
from trainmesh.types import Algorithm, Choice, Plan

__all__ = ["CALIBRATION", "GROUP", "Planner", "choose", "planners"]

GROUP = "trainmesh.planners"
CALIBRATION: Mapping[str, float] = {Algorithm.HIERARCHICAL: 1.6}
"""Measured / predicted time of executors against native's, where links are equal: what their
own work costs (benchmarks/executors.py; gloo, 4 ranks on one machine)."""
MAX_BOTTLENECK = 512
"""Links named in a plan, so that a hint for a large cluster still fits a value of the store."""
MAX_WORDS = 1000


class Planner(Protocol):
    """Makes one plan for an all-reduce of ``nbytes`` on ``graph``; None where it doesn't apply.

    Pure. A planner of a third party sets ``predicted_s`` itself; for the built-in algorithms it
    is computed from the plan's messages. One that fails, or whose plan is malformed, is left out
    with a warning among the words of the choice.
    """

    def __call__(self, graph: LinkGraph, nbytes: int) -> Plan | None: ...


BUILT_IN: Mapping[str, Planner] = {
    Algorithm.NATIVE: native.plan,
    Algorithm.RING: ring.plan,
    Algorithm.HIERARCHICAL: hierarchical.plan,
}


@cache
def _registered() -> tuple[Mapping[str, Planner], tuple[str, ...]]:
    """The planners by name, and a warning for each package whose planner can't be loaded."""
    found: dict[str, Planner] = dict(BUILT_IN)
    warnings: list[str] = []
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        if point.name in found:
            warnings.append(f"planner {point.name!r} of {package} is ignored: the name is taken")
            continue
        try:
            found[point.name] = point.load()
        except Exception as error:  # third-party code may fail in any way
            text = f"planner {point.name!r} of {package} can't be loaded: {error!r}"
            warnings.append(text[:MAX_WORDS])
    return found, tuple(warnings)


def planners() -> Mapping[str, Planner]:
    """The built-in planners and those of installed packages that can be loaded, by name."""
    return _registered()[0]


def choose(
    graph: LinkGraph,
    sizes: Sequence[int],
    *,
    calibration: Mapping[str, float] | None = None,
    margin: float = 0.05,
    only: str | None = None,
) -> Choice:
    """The plan for a step whose buckets have ``sizes`` bytes.

    Candidates are compared by the sum of their predicted times over all buckets, times
    ``calibration[algorithm]`` (measured / predicted) where it is known. Native stays unless a
    plan is predicted to be faster by more than ``margin`` (0.05 = 5 %); ``only`` forces one
    algorithm if it applies.

    Raises:
        ConfigError: ``only`` is not a known algorithm.
        ValueError: ``sizes`` is empty.
    """
    if only is not None and only not in planners():
        raise ConfigError(f"unknown algorithm {only!r}; known are {', '.join(planners())}")
    if not sizes:
        raise ValueError("a step without buckets needs no plan")
    least = bound(graph, max(sizes))
    plans, warnings = _candidates(graph, max(sizes), least)
    factors = calibration or {}
    timed = sorted(
        ((_step_s(plan, graph, sizes) * factors.get(plan.algorithm, 1.0), plan) for plan in plans),
        key=lambda item: (item[0], item[1].algorithm != Algorithm.NATIVE, item[1].algorithm),
    )
    native_s = next(seconds for seconds, plan in timed if plan.algorithm == Algorithm.NATIVE)
    best = _winner(timed, native_s, margin, only)
    candidates = []
    for seconds, plan in timed:
        words = reason(
            plan,
            chosen=plan is best,
            speed=native_s / seconds if seconds else 1.0,
            margin=margin,
            asked_for=only == plan.algorithm,
        )
        candidates.append(replace(plan, reason=words))
    [chosen] = (plan for plan in candidates if plan.algorithm == best.algorithm)
    return Choice(
        graph_version=graph.version,
        nbytes=max(sizes),
        chosen=chosen.algorithm,
        candidates=tuple(candidates),
        explain=(*choice_words(graph, least, candidates, chosen), *warnings),
    )


def _candidates(graph: LinkGraph, nbytes: int, least: Bound) -> tuple[list[Plan], list[str]]:
    """All plans that apply, and warnings of what was left out."""
    known, unloaded = _registered()
    found: list[Plan] = []
    warnings = list(unloaded)
    for name, planner in known.items():
        try:
            plan = _candidate(planner, graph, nbytes, least)
            if plan is not None and plan.algorithm != name:
                raise PlanError(f"its plan is called {plan.algorithm!r}")
        except Exception as error:
            if name in BUILT_IN:
                raise
            # Third-party code may fail in any way, and must not stop the job's planning.
            warnings.append(f"planner {name!r} is left out: {error!r}"[:MAX_WORDS])
            continue
        if plan is not None:
            found.append(plan)
    return found, warnings


def _candidate(planner: Planner, graph: LinkGraph, nbytes: int, least: Bound) -> Plan | None:
    """One planner's plan, proven, predicted and held against the bound."""
    plan = planner(graph, nbytes)
    if plan is None:
        return None
    validate(plan, graph.world_size)
    if plan.algorithm in BUILT_IN:
        prediction = predict(plan, graph, nbytes)
        plan = replace(plan, predicted_s=prediction.time_s, bottleneck=prediction.bottleneck)
    elif not least.time_s <= plan.predicted_s < math.inf:
        raise PlanError(f"predicted_s is {plan.predicted_s}, the bound is {least.time_s} s")
    return replace(
        plan,
        nbytes=nbytes,
        bottleneck=plan.bottleneck[:MAX_BOTTLENECK],
        bound_s=least.time_s,
        bound_kind=least.kind,
        bound_cut=_smaller_side(least.cut, graph),
        graph_version=graph.version,
    )


def _smaller_side(cut: Sequence[str], graph: LinkGraph) -> tuple[str, ...]:
    others = {node.name for node in graph.nodes}.difference(cut)
    return tuple(cut) if len(cut) <= len(others) else tuple(sorted(others))


def _step_s(plan: Plan, graph: LinkGraph, sizes: Sequence[int]) -> float:
    """Predicted time of a step's buckets, one after the other."""
    if plan.algorithm in BUILT_IN:
        return sum(predict(plan, graph, nbytes).time_s for nbytes in sizes)
    # A plug-in's messages are not known: scale its own figure.
    return plan.predicted_s * sum(sizes) / max(1, *sizes)


def _winner(
    timed: Sequence[tuple[float, Plan]], native_s: float, margin: float, only: str | None
) -> Plan:
    if only is not None:
        for _, plan in timed:
            if plan.algorithm == only:
                return plan
    best_s, best = timed[0]
    if best.algorithm != Algorithm.NATIVE and best_s < (1 - margin) * native_s:
        return best
    return next(plan for _, plan in timed if plan.algorithm == Algorithm.NATIVE)
