"""The words of a choice: what limits the graph, what limits each plan, and why one won."""

from __future__ import annotations

from collections.abc import Sequence

from trainmesh.topology.bound import Bound
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Algorithm, Plan

__all__ = ["choice_words", "names", "reason"]

MAX_NAMES = 4
MAX_ISLANDS = 8
MAX_RANKS = 16


def choice_words(
    graph: LinkGraph, least: Bound, candidates: Sequence[Plan], chosen: Plan
) -> list[str]:
    """A line for the bound, one for each candidate, and one for the chosen plan."""
    if graph.world_size == 1:
        return ["One rank: there is nothing to reduce."]
    lines = [_bound_words(graph, least, chosen.nbytes)]
    for plan in candidates:
        mark = " <- chosen" if plan is chosen else ""
        limit = f"; limited by {names(plan.bottleneck)}" if plan.bottleneck else ""
        lines.append(
            f"{plan.algorithm}: {plan.predicted_s * 1e3:.3f} ms, "
            f"{plan.algbw_bytes_per_s / 1e9:.3f} GB/s algbw, efficiency {plan.efficiency:.1%}"
            f"{limit}{mark}"
        )
    return [*lines, f"Chosen: {chosen.algorithm}. {chosen.reason}."]


def reason(plan: Plan, *, chosen: bool, speed: float, margin: float, asked_for: bool) -> str:
    """Why ``plan`` is or is not the chosen one; ``speed`` is that of native = 1."""
    limit = f", limited by {names(plan.bottleneck)}" if plan.bottleneck else ""
    if plan.algorithm != Algorithm.NATIVE:
        text = f"{plan.algorithm} {_shape(plan)} is predicted {speed:.2f}x as fast as native{limit}"
        return f"{text} (asked for)" if chosen and asked_for else text
    if not chosen:
        return f"the backend's own all-reduce in rank order{limit}"
    if asked_for:
        return "native was asked for"
    return f"no plan is predicted to be more than {margin:.0%} faster than native"


def names(all_names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(all_names) - MAX_NAMES
    return ", ".join(all_names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _shape(plan: Plan) -> str:
    if not plan.islands:
        return _ranks(plan.order)
    shown = " | ".join(_ranks(island) for island in plan.islands[:MAX_ISLANDS])
    more = " | ..." if len(plan.islands) > MAX_ISLANDS else ""
    return f"over {len(plan.islands)} islands ({shown}{more})"


def _ranks(ranks: Sequence[int]) -> str:
    return "-".join(map(str, ranks[:MAX_RANKS])) + ("-..." if len(ranks) > MAX_RANKS else "")


def _bound_words(graph: LinkGraph, least: Bound, nbytes: int) -> str:
    limit = (
        f"No all-reduce of {nbytes / 1e6:.3f} MB can take less than {least.time_s * 1e3:.3f} ms "
        "on this graph:"
    )
    if least.kind == "volume":
        copies = 2 * (graph.world_size - 1)
        together = copies * nbytes / least.time_s if least.time_s else 0.0
        return (
            f"{limit} the ranks have to send it 2 (N - 1) = {copies} times over, and all their "
            f"links together carry {together / 1e9:.3f} GB/s."
        )
    capacity = sum(graph.link(name).cost.bandwidth_bytes_per_s for name in least.links)
    others = [node.name for node in graph.nodes if node.name not in set(least.cut)]
    side, verb = (others, "enter") if len(others) < len(least.cut) else (least.cut, "leave")
    return (
        f"{limit} all of it must {verb} {{{names(side)}}}, over {names(least.links)}, "
        f"which carry {capacity / 1e9:.3f} GB/s together."
    )
