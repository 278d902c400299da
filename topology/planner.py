"""Choose a plan: every candidate is proven, predicted and compared with the bound; the choice has
its reason.

Third parties add planners by the entry-point group ``trainmesh.planners``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, cast

from msgspec.structs import replace

from trainmesh.errors import ConfigError, PlanError
from trainmesh.job_settings import MARGIN
from trainmesh.topology.bounds import Bound, bound
from trainmesh.topology.cost import PlanCost, plan_cost
from trainmesh.topology.crossover import crossovers
from trainmesh.topology.explain import Comparison, describe_choice, describe_crossover, reason
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.request import LIVE, Executors, Planner, PlanRequest
from trainmesh.topology.validate import check_loads, validate
from trainmesh.types import MAX_RANKS, Algorithm, Choice, Collective, Plan

__all__ = ["CALIBRATION", "GROUP", "UNMEASURED", "choose", "planners", "why_not"]

GROUP = "trainmesh.planners"
CALIBRATION: Mapping[str, float] = {
    Algorithm.TREE: 1.05,
    Algorithm.HIERARCHICAL: 1.0,
    Algorithm.SHARDED: 1.2,
    Algorithm.FOREST: 1.1,
}
"""Measured / predicted time of executors against native's (benchmarks/lab.py: medians over its
scenarios). A job corrects them by what it measures."""
UNMEASURED = 1.25
"""Assumed of executors on NCCL groups."""
MAX_BOTTLENECK = 512
"""Links named in a plan, so that a hint for a large cluster still fits a value of the store."""
MAX_WORDS = 1000
"""Characters of somebody else's planner's error."""
NEEDED = {32: math.inf, MAX_RANKS: 0.75}
"""Up to this many ranks, a forest is packed if no other plan reaches this share of the bound."""
DIGITS = 7
"""Times that agree to this many digits are equal; the simpler algorithm then wins."""


class _Module(Protocol):
    """A built-in algorithm: ``topology/planners/NAME.py``."""

    plan: Planner

    def why_not(self, graph: LinkGraph, request: PlanRequest) -> str | None:
        """As the end of a sentence, why it does not apply; None if it does."""
        ...


_MODULES: Mapping[str, _Module] = {
    name: cast(_Module, import_module(f"trainmesh.topology.planners.{name}")) for name in Algorithm
}
BUILT_IN: Mapping[str, Planner] = {name: module.plan for name, module in _MODULES.items()}
"""From the simplest to the most elaborate, as ``Algorithm`` names them."""


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


def why_not(algorithm: str, graph: LinkGraph, request: PlanRequest) -> str | None:
    """Why ``algorithm`` can't be planned for ``request`` on ``graph``, as the end of a sentence;
    None if nothing is known to be against it."""
    if algorithm not in planners():
        return f"it is unknown; known are {', '.join(planners())}"
    if algorithm in BUILT_IN and algorithm not in request.executors.algorithms:
        return "its executor can't run on this backend"
    module = _MODULES.get(algorithm)
    return module.why_not(graph, request) if module is not None else None


def choose(
    graph: LinkGraph,
    sizes: Sequence[int],
    *,
    collective: Collective = Collective.ALLREDUCE,
    executors: Executors = LIVE,
    max_trees: int = 64,
    calibration: Mapping[str, float] | None = None,
    margin: float = MARGIN,
    only: str | None = None,
) -> Choice:
    """The plan for a step whose buckets have ``sizes`` bytes.

    Candidates are compared by the sum of their predicted times over all buckets, times
    ``calibration[algorithm]`` (measured / predicted) where it is known. Native stays unless a
    plan is predicted to be faster by more than ``margin`` (0.05 = 5 %). ``only`` forces one
    algorithm; where that can't be had, native stays, and its reason says why.

    Raises:
        ConfigError: ``only`` is not a known algorithm.
        GraphError: the ranks can't do without the links in quarantine.
        ValueError: ``sizes`` is empty.
    """
    if only is not None and only not in planners():
        raise ConfigError(f"unknown algorithm {only!r}; known are {', '.join(planners())}")
    if not sizes:
        raise ValueError("a step without buckets needs no plan")
    graph = graph.usable()
    request = PlanRequest(max(sizes), collective, executors, max_trees)
    least = bound(graph, request.nbytes, collective)
    found, warnings = _candidates(graph, request, least, only)
    factors = calibration or {}
    simplicity = {name: place for place, name in enumerate(planners())}
    timed = sorted(
        ((item.step_s(sizes) * factors.get(item.plan.algorithm, 1.0), item.plan) for item in found),
        key=lambda item: (float(f"{item[0]:.{DIGITS}e}"), simplicity[item[1].algorithm]),
    )
    native_s = next(seconds for seconds, plan in timed if plan.algorithm == Algorithm.NATIVE)
    best = _winner(timed, native_s, margin, only)
    refusal = "" if only in (None, best.algorithm) else _refusal(only, graph, request)
    how = Comparison(margin, only, refusal, executors.native_is_ring, len(sizes))
    candidates = []
    for seconds, plan in timed:
        words = reason(plan, how, chosen=plan is best, step_s=seconds, native_s=native_s)
        candidates.append(replace(plan, reason=words))
    [chosen] = (plan for plan in candidates if plan.algorithm == best.algorithm)
    changes = crossovers(
        {
            item.plan.algorithm: item.cost
            for item in found
            if item.cost and (executors.native_is_ring or item.plan.algorithm != Algorithm.NATIVE)
        }
    )
    return Choice(
        graph_version=graph.version,
        nbytes=request.nbytes,
        chosen=chosen.algorithm,
        candidates=tuple(candidates),
        explain=(
            *describe_choice(
                graph, least, candidates, chosen, native_is_ring=executors.native_is_ring
            ),
            *describe_crossover(changes),
            *warnings,
        ),
        crossovers=changes,
    )


def _refusal(only: str, graph: LinkGraph, request: PlanRequest) -> str:
    return why_not(only, graph, request) or "its planner found no plan for these links"


class _Candidate:
    """A proven plan, and its time for any number of bytes."""

    def __init__(self, plan: Plan, cost: PlanCost | None) -> None:
        self.plan = plan
        self.cost = cost

    def step_s(self, sizes: Sequence[int]) -> float:
        """Predicted time of a step's buckets, one after the other."""
        if self.cost is not None:
            return sum(self.cost.predict(nbytes).time_s for nbytes in sizes)
        # A plug-in's messages are not known: scale its own figure.
        return self.plan.predicted_s * sum(sizes) / max(1, *sizes)


def _candidates(
    graph: LinkGraph, request: PlanRequest, least: Bound, only: str | None
) -> tuple[list[_Candidate], list[str]]:
    """All plans that apply, and warnings of what was left out."""
    known, unloaded = _registered()
    found: list[_Candidate] = []
    warnings = list(unloaded)
    for name, planner in known.items():
        if name in BUILT_IN and name not in request.executors.algorithms:
            continue
        if name == Algorithm.FOREST and only != name and (good := _good_enough(found, least)):
            warnings.append(f"forest was not tried: {good} comes close to the bound already.")
            continue
        try:
            candidate = _candidate(planner, graph, request, least)
            if candidate is not None and candidate.plan.algorithm != name:
                raise PlanError(f"its plan is called {candidate.plan.algorithm!r}")
        except Exception as error:
            if name in BUILT_IN:
                raise
            # Third-party code may fail in any way, and must not stop the job's planning.
            warnings.append(f"planner {name!r} is left out: {error!r}"[:MAX_WORDS])
            continue
        if candidate is not None:
            found.append(candidate)
    return found, warnings


def _good_enough(found: Sequence[_Candidate], least: Bound) -> str | None:
    """The algorithm of a plan that is so close to the bound for very large buckets that packing
    trees for this many ranks isn't worth the seconds."""
    plans = [item.plan for item in found if item.plan.busy_s]
    if not plans:
        return None
    best = min(plans, key=lambda plan: plan.busy_s)
    needed = next(share for ranks, share in NEEDED.items() if best.world_size <= ranks)
    return best.algorithm if least.time_s >= needed * best.busy_s else None


def _candidate(
    planner: Planner, graph: LinkGraph, request: PlanRequest, least: Bound
) -> _Candidate | None:
    """One planner's plan: proven, predicted and compared with the bound."""
    plan = planner(graph, request)
    if plan is None:
        return None
    validate(plan, graph.world_size)
    cost = None
    if plan.algorithm in BUILT_IN:
        cost = plan_cost(plan, graph, request.executors.message_s)
        check_loads(plan, graph, cost.loads)
        time_s, num_chunks = cost.predict(request.nbytes)
        plan = replace(
            plan,
            predicted_s=time_s,
            busy_s=cost.busiest_s_per_byte * request.nbytes,
            num_chunks=num_chunks,
            bottleneck=cost.bottleneck,
        )
    elif not least.time_s <= plan.predicted_s < math.inf:
        raise PlanError(f"predicted_s is {plan.predicted_s}, the bound is {least.time_s} s")
    plan = replace(
        plan,
        nbytes=request.nbytes,
        bottleneck=plan.bottleneck[:MAX_BOTTLENECK],
        bound_s=least.time_s,
        bound_kind=least.kind,
        bound_cut=_smaller_side(least.cut, graph),
        graph_version=graph.version,
    )
    return _Candidate(plan, cost)


def _smaller_side(cut: Sequence[str], graph: LinkGraph) -> tuple[str, ...]:
    others = {node.name for node in graph.nodes}.difference(cut)
    return tuple(cut) if len(cut) <= len(others) else tuple(sorted(others))


def _winner(
    timed: Sequence[tuple[float, Plan]], native_s: float, margin: float, only: str | None
) -> Plan:
    by_name = {plan.algorithm: plan for _, plan in timed}
    native = by_name[Algorithm.NATIVE]
    if only is not None:
        return by_name.get(only, native)
    best_s, best = timed[0]
    return best if best_s < (1 - margin) * native_s else native
