"""Choose a plan: every candidate proven, predicted and held against the bound, with the reason.

Third parties add planners by the entry-point group ``trainmesh.planners``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Protocol

from msgspec.structs import replace

from trainmesh.errors import ConfigError, PlanError
from trainmesh.topology import hierarchical, native, ring
from trainmesh.topology.bound import Bound, bound
from trainmesh.topology.cost import predict
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.validate import validate
from trainmesh.types import Algorithm, Choice, Plan

__all__ = ["GROUP", "Planner", "choose", "planners"]

GROUP = "trainmesh.planners"


class Planner(Protocol):
    """Makes one plan for an all-reduce of ``nbytes`` on ``graph``; None where it doesn't apply.

    Pure. A planner of a third party sets ``predicted_s`` itself; for the built-in algorithms it
    is computed from the plan's messages.
    """

    def __call__(self, graph: LinkGraph, nbytes: int) -> Plan | None: ...


@cache
def planners() -> Mapping[str, Planner]:
    """The built-in planners and those of installed packages, by name.

    Raises:
        ConfigError: a package's planner can't be loaded; the message names the package.
    """
    found: dict[str, Planner] = {
        Algorithm.NATIVE: native.plan,
        Algorithm.RING: ring.plan,
        Algorithm.HIERARCHICAL: hierarchical.plan,
    }
    for point in entry_points(group=GROUP):
        try:
            found.setdefault(point.name, point.load())
        except Exception as error:  # third-party code may fail in any way
            package = point.dist.name if point.dist else point.value
            raise ConfigError(
                f"planner {point.name!r} of {package} can't be loaded: {error}"
            ) from error
    return found


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
    """
    if only is not None and only not in planners():
        raise ConfigError(f"unknown algorithm {only!r}; known are {', '.join(planners())}")
    largest = max(sizes)
    least = bound(graph, largest)
    factors = calibration or {}
    timed = sorted(
        (
            (_step_s(plan, graph, sizes) * factors.get(plan.algorithm, 1.0), plan)
            for plan in _candidates(graph, largest, least)
        ),
        key=lambda item: (item[0], item[1].algorithm != Algorithm.NATIVE, item[1].algorithm),
    )
    native_s = next(seconds for seconds, plan in timed if plan.algorithm == Algorithm.NATIVE)
    chosen = _winner(timed, native_s, margin, only)
    candidates = tuple(
        replace(plan, reason=_reason(plan, plan is chosen, seconds, native_s, margin, only))
        for seconds, plan in timed
    )
    return Choice(
        graph_version=graph.version,
        nbytes=largest,
        chosen=chosen.algorithm,
        candidates=candidates,
        explain=tuple(_explain(least, candidates, chosen.algorithm, graph)),
    )


def _candidates(graph: LinkGraph, nbytes: int, least: Bound) -> list[Plan]:
    found: list[Plan] = []
    for planner in planners().values():
        plan = planner(graph, nbytes)
        if plan is None:
            continue
        validate(plan, graph.world_size)
        plan = replace(
            plan,
            nbytes=nbytes,
            bound_s=least.time_s,
            bound_kind=least.kind,
            bound_cut=least.cut,
            graph_version=graph.version,
        )
        if plan.algorithm in tuple(Algorithm):
            prediction = predict(plan, graph, nbytes)
            plan = replace(plan, predicted_s=prediction.time_s, bottleneck=prediction.bottleneck)
        found.append(plan)
    return found


def _step_s(plan: Plan, graph: LinkGraph, sizes: Sequence[int]) -> float:
    """Predicted time of a step's buckets, one after the other."""
    try:
        return sum(predict(plan, graph, nbytes).time_s for nbytes in sizes)
    except PlanError:  # a plug-in's algorithm: scale its own figure
        return plan.predicted_s * sum(sizes) / max(sizes)


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


def _reason(
    plan: Plan, chosen: bool, seconds: float, native_s: float, margin: float, only: str | None
) -> str:
    speed = native_s / seconds if seconds else 1.0
    where = f"limited by {_links(plan.bottleneck)}" if plan.bottleneck else "nothing to send"
    if plan.algorithm == Algorithm.NATIVE:
        if not chosen:
            return f"the backend's own all-reduce in rank order, {where}"
        if only == Algorithm.NATIVE:
            return "native was asked for"
        return f"no plan is predicted to be more than {margin:.0%} faster than native"
    shape = _shape(plan)
    text = f"{plan.algorithm} {shape} is predicted {speed:.2f}x as fast as native, {where}"
    return f"{text} (asked for)" if chosen and only == plan.algorithm else text


def _shape(plan: Plan) -> str:
    if plan.islands:
        shown = " | ".join(_ranks(island) for island in plan.islands[:8])
        return f"over {len(plan.islands)} islands ({shown}{' | ...' * (len(plan.islands) > 8)})"
    return _ranks(plan.order)


def _ranks(ranks: Sequence[int]) -> str:
    return "-".join(map(str, ranks[:16])) + ("-..." if len(ranks) > 16 else "")


def _links(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _explain(least: Bound, candidates: Sequence[Plan], chosen: str, graph: LinkGraph) -> list[str]:
    """The words of ``trainmesh explain``."""
    if least.kind == "none":
        return ["One rank: there is nothing to reduce."]
    nbytes = candidates[0].nbytes
    lines = [_bound_words(least, nbytes, graph)]
    for plan in candidates:
        mark = " <- chosen" if plan.algorithm == chosen else ""
        lines.append(
            f"{plan.algorithm}: {plan.predicted_s * 1e3:.3f} ms, "
            f"{plan.algbw_bytes_per_s / 1e9:.3f} GB/s algbw, efficiency {plan.efficiency:.1%}; "
            f"limited by {_links(plan.bottleneck)}{mark}"
        )
    winner = next(plan for plan in candidates if plan.algorithm == chosen)
    lines.append(f"Chosen: {winner.algorithm}. {winner.reason}.")
    return lines


def _bound_words(least: Bound, nbytes: int, graph: LinkGraph) -> str:
    size = f"{nbytes / 1e6:.3f} MB"
    if least.kind == "volume":
        return (
            f"No all-reduce of {size} can take less than {least.time_s * 1e3:.3f} ms on this "
            "graph: each byte has to leave and enter the ranks 2 (N - 1) times, and that is "
            "what all their links together can carry."
        )
    capacity = sum(graph.link(name).cost.bandwidth_bytes_per_s for name in least.links)
    return (
        f"No all-reduce of {size} can take less than {least.time_s * 1e3:.3f} ms on this graph: "
        f"all of it must leave {{{_links(least.cut)}}}, over {_links(least.links)}, "
        f"which carry {capacity / 1e9:.3f} GB/s together."
    )
