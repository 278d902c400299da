"""Explains a choice in words: what limits the graph, what limits each plan, and why one won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainmesh.topology.advice import Advice
from trainmesh.topology.bounds import Bound
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import Algorithm, Collective, Crossover, Plan
from trainmesh.units import count, duration, rate, size, speedup

__all__ = [
    "Comparison",
    "describe_advice",
    "describe_bound",
    "candidate_name",
    "describe_choice",
    "describe_crossover",
    "names",
    "reason",
    "slack_at_most",
]

MAX_NAMES = 4
"""Links of a bottleneck in one sentence; of more there is the number."""
MAX_ISLANDS = 8
"""Islands in one line."""
MAX_RANKS = 16
"""Ranks of an order in one line."""
MIN_MARGIN = 0.005
"""Below half a percent "more than 0 %" would be said."""
NOUNS = {
    Collective.ALLREDUCE: "all-reduce",
    Collective.ALLGATHER: "all-gather",
    Collective.REDUCE_SCATTER: "reduce-scatter",
}
ROUNDING = 1e-6
"""Slack below this is of floating point, not of the plan."""
GAIN = "Native, to which plans are compared, is gloo's own collective: one ring in rank order."
NO_GAIN = (
    "No gain over the backend's own collective is given: it is not one ring in rank order (NCCL "
    "chooses among rings in orders of its own, trees and NVLS), so its time is not known."
)


def describe_choice(
    graph: LinkGraph,
    least: Bound,
    candidates: Sequence[Plan],
    chosen: Plan,
    *,
    native_is_ring: bool,
) -> list[str]:
    """Lines for the bound, one for each candidate, one for the chosen plan, and one for what native
    is."""
    if graph.world_size == 1:
        return ["One rank: there is nothing to reduce."]
    lines = [describe_bound(graph, least, chosen.nbytes, chosen.collective)]
    if (slack := slack_at_most(least, candidates)) > 0:
        lines.append(
            f"The bound is proven, but perhaps not the tightest: what links can carry allows "
            f"between it and {duration(least.time_s * (1 + slack))}, at most {slack:.1%} more."
        )
    for plan in candidates:
        mark = " <- chosen" if plan is chosen else ""
        limit = f"; limited by {names(plan.bottleneck)}" if plan.bottleneck else ""
        lines.append(
            f"{candidate_name(plan, native_is_ring=native_is_ring)}: "
            f"{duration(plan.predicted_s)}, "
            f"{rate(plan.algbw_bytes_per_s)} algbw, efficiency {plan.efficiency:.1%}"
            f"{limit}{mark}"
        )
    lines.append(f"Chosen: {chosen.algorithm}. {chosen.reason}.")
    return [*lines, GAIN if native_is_ring else NO_GAIN]


def candidate_name(plan: Plan, *, native_is_ring: bool) -> str:
    """As in a table of what was compared."""
    if plan.algorithm == Algorithm.NATIVE and not native_is_ring:
        return "one ring in rank order"
    return plan.algorithm


def slack_at_most(least: Bound, candidates: Sequence[Plan]) -> float:
    """How far, as a share of it, the bound may be below the optimum for very large buckets. 0 if it
    is known to be exact, or if a plan keeps the busiest link busy for no longer."""
    busy_s = [plan.busy_s for plan in candidates if plan.busy_s]
    if least.exact or not busy_s:
        return 0.0
    slack = min(busy_s) / least.time_s - 1
    return slack if slack > ROUNDING else 0.0


@dataclass(frozen=True)
class Comparison:
    """How plans were compared: the gain over native that it takes, the algorithm that was asked for
    and why it can't be had (empty if it can), whether native is what the backend runs, and for how
    many buckets."""

    margin: float
    asked_for: str | None
    refusal: str
    native_is_ring: bool
    num_buckets: int


def reason(plan: Plan, how: Comparison, *, chosen: bool, step_s: float, native_s: float) -> str:
    """Why ``plan`` is or is not the chosen one; ``step_s`` and ``native_s``: what a step's buckets
    are predicted to take with it and with native."""
    limit = f", limited by {names(plan.bottleneck)}" if plan.bottleneck else ""
    if plan.algorithm != Algorithm.NATIVE:
        text = f"{plan.algorithm} {_shape(plan)} is predicted {_pace(how, step_s, native_s)}{limit}"
        return f"{text} (asked for)" if chosen and how.asked_for == plan.algorithm else text
    if how.refusal:
        return f"{how.asked_for} was asked for and can't run here: {how.refusal}"
    if not chosen:
        return f"the backend's own collective{' in rank order' * how.native_is_ring}{limit}"
    if how.asked_for == plan.algorithm:
        return "native was asked for"
    least = "" if how.margin < MIN_MARGIN else f"more than {how.margin:.0%} "
    other = (
        "native"
        if how.native_is_ring
        else "one ring in rank order, so the backend is left to itself"
    )
    return f"no plan is predicted to be {least}faster than {other}"


def _pace(how: Comparison, step_s: float, native_s: float) -> str:
    """Against native where that is what runs without us."""
    what = "a bucket" if how.num_buckets == 1 else f"a step's {how.num_buckets} buckets"
    if how.native_is_ring:
        faster = f"{speedup(native_s, step_s)} as fast as native"
        return f"{faster} ({duration(step_s)}, not {duration(native_s)}, for {what})"
    return f"to take {duration(step_s)} for {what}"


def describe_crossover(found: Sequence[Crossover]) -> list[str]:
    """One line, or none where one algorithm is the fastest at any size."""
    if not found:
        return []
    parts = [f"{found[0].before} up to {size(found[0].nbytes)}"]
    for change, following in zip(found, found[1:], strict=False):
        parts.append(f"{change.after} up to {size(following.nbytes)}")
    parts.append(f"{found[-1].after} above")
    return [f"Fastest by size: {', '.join(parts)}."]


def describe_advice(found: Advice | None) -> list[str]:
    """One line, or none."""
    if found is None:
        return []
    return [
        f"What would help most: {names(found.links)} at {rate(found.bandwidth_bytes_per_s)} "
        f"each would allow {found.times:.2f}x the speed."
    ]


def names(all_names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(all_names) - MAX_NAMES
    return ", ".join(all_names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def describe_bound(graph: LinkGraph, least: Bound, nbytes: int, collective: Collective) -> str:
    """The bound, and the links and nodes that cause it."""
    limit = (
        f"No {NOUNS[collective]} of {size(nbytes)} can take less than {duration(least.time_s)} "
        "on this graph:"
    )
    if least.kind == "cut":
        return f"{limit} {_describe_cut(graph, least, collective)}"
    if least.kind == "volume":
        copies = 2 * (graph.world_size - 1)
        together = copies * nbytes / least.time_s if least.time_s else 0.0
        return (
            f"{limit} the ranks have to send it 2 (N - 1) = {copies} times over, and all their "
            f"links together carry {rate(together)}."
        )
    if least.groups:
        copies = 2 * (len(least.groups) - 1)
        together = copies * nbytes / least.time_s if least.time_s else 0.0
        carry = "link between them carries" if len(least.links) == 1 else "links between them carry"
        return (
            f"{limit} {len(least.groups)} groups of nodes ({_describe_group(least)}) have to send "
            f"it {copies} times over to each other, and the {len(least.links)} {carry} "
            f"{rate(together)}."
        )
    return (
        f"{limit} reducing it to some ranks and sending it out from there fills "
        f"{names(least.links)} (linear programme over all reduce-then-broadcast forests)."
    )


def _describe_cut(graph: LinkGraph, least: Bound, collective: Collective) -> str:
    capacity = sum(graph.link(name).cost.bandwidth_bytes_per_s for name in least.links)
    inside = set(least.cut)
    others = [node.name for node in graph.nodes if node.name not in inside]
    few, verb = (others, "enter") if len(others) < len(inside) else (least.cut, "leave")
    carry = "carries" if len(least.links) == 1 else "together carry"
    over = f"over {names(least.links)}, which {carry} {rate(capacity)}."
    if collective == Collective.ALLREDUCE:
        return f"all of it must {verb} {{{names(few)}}}, {over}"
    sending = sum(graph.rank_node(rank) in inside for rank in range(graph.world_size))
    shards = sending if collective == Collective.ALLGATHER else graph.world_size - sending
    return f"{count(shards, 'shard')} of {graph.world_size} must {verb} {{{names(few)}}}, {over}"


def _describe_group(least: Bound) -> str:
    return names([f"{{{names(group)}}}" for group in least.groups])


def _shape(plan: Plan) -> str:
    if plan.trees:
        return _describe_tree(plan)
    if plan.rings:
        at_once = " at once" if len(plan.rings) > 1 else ""
        return f"of {count(len(plan.rings), 'ring')}{at_once}"
    if plan.shares and not plan.islands:
        return f"with shards from {min(plan.shares):.1%} to {max(plan.shares):.1%}"
    if not plan.islands:
        return _ranks(plan.order)
    shown = " | ".join(_ranks(island, ",") for island in plan.islands[:MAX_ISLANDS])
    more = " | ..." if len(plan.islands) > MAX_ISLANDS else ""
    levels = f" in {len(plan.levels)} levels" if plan.levels else ""
    places = f" with shares by place from {min(plan.shares):.1%}" if plan.shares else ""
    return f"over {len(plan.islands)} islands{levels} ({shown}{more}){places}"


def _describe_tree(plan: Plan) -> str:
    """A tree's root, or how many trees take a share each."""
    if len(plan.trees) == 1:
        return f"rooted at rank {plan.trees[0].root}"
    return f"of {len(plan.trees)} trees at once"


def _ranks(ranks: Sequence[int], between: str = "-") -> str:
    """``between`` must not be "-" where two ranks can be meant: they would read as a range."""
    more = f"{between}..." if len(ranks) > MAX_RANKS else ""
    return between.join(map(str, ranks[:MAX_RANKS])) + more
