"""Alpha and beta from what the hooks measured.

Bucket times under one plan form a line over bucket sizes. The plan's cost model says how often
the alpha and how much of the bytes each link contributes to it, so the line gives the cost of
one link class: the one of the link that limits the plan. The other links keep theirs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from trainmesh.topology.cost import PlanCost, plan_cost
from trainmesh.topology.graph import Link, LinkGraph, Provenance
from trainmesh.types import ClassFit, LinkCost, Plan

__all__ = ["LineFit", "fit_class", "fit_line"]


@dataclass(frozen=True)
class LineFit:
    """``seconds = intercept_s + slope_s_per_byte * nbytes``; ``residual`` is the median of
    |measured - fitted| / measured over the sizes."""

    intercept_s: float
    slope_s_per_byte: float
    num_samples: int
    residual: float


def fit_line(samples: Sequence[tuple[int, float]]) -> LineFit | None:
    """A robust line through (nbytes, seconds): Theil-Sen on the medians of each size.

    None with fewer than two sizes, or if larger buckets were not slower.
    """
    by_size: dict[int, list[float]] = defaultdict(list)
    for nbytes, seconds in samples:
        by_size[nbytes].append(seconds)
    points = sorted((nbytes, median(seconds)) for nbytes, seconds in by_size.items())
    if len(points) < 2:
        return None
    slope = median((t2 - t1) / (n2 - n1) for (n1, t1), (n2, t2) in combinations(points, 2))
    if slope <= 0:
        return None
    intercept_s = max(0.0, median(seconds - slope * nbytes for nbytes, seconds in points))
    errors = [abs(t - intercept_s - slope * n) / t for n, t in points if t > 0]
    return LineFit(intercept_s, slope, len(samples), median(errors) if errors else 0.0)


def fit_class(
    plan: Plan, graph: LinkGraph, samples: Sequence[tuple[int, float]]
) -> ClassFit | None:
    """The cost of the link class that limits ``plan`` on ``graph``, from its bucket times.

    Both costs are those of the slowest link of the class; ``LinkGraph.with_class_cost`` spreads
    them to the others. ``planned`` never makes a link faster than it was declared: hooks see the
    sum of everything, and a line rate is a ceiling. Where the cost was only assumed, or measured
    before, what is measured now counts; so fit on the graph as it was declared, not on one that
    an earlier fit has changed.

    Returns:
        None if the samples don't determine the class.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    line = fit_line(samples)
    if line is None or plan.world_size == 1:
        return None
    cost = plan_cost(plan, graph)
    slowest = graph.slowest(graph.link(cost.bottleneck[0]).link_class)
    measured = _solve(line, cost, graph, slowest)
    if measured is None:
        return None
    planned = measured
    if slowest.provenance in (Provenance.DECLARED, Provenance.DISCOVERED):
        planned = LinkCost(
            alpha_s=max(measured.alpha_s, slowest.cost.alpha_s),
            bandwidth_bytes_per_s=min(
                measured.bandwidth_bytes_per_s, slowest.cost.bandwidth_bytes_per_s
            ),
        )
    return ClassFit(
        link_class=slowest.link_class,
        measured=measured,
        planned=planned,
        num_samples=line.num_samples,
        residual=line.residual,
    )


def _solve(line: LineFit, cost: PlanCost, graph: LinkGraph, slowest: Link) -> LinkCost | None:
    """Solve intercept and slope for the one class whose cost, that of its ``slowest`` link, is
    unknown."""
    own_load = other_s_per_byte = own_rounds = other_s = 0.0
    for stage in cost.stages:
        if graph.link(stage.link).link_class == slowest.link_class:
            faster = stage.bandwidth_bytes_per_s / slowest.cost.bandwidth_bytes_per_s
            own_load += stage.load / faster
        else:
            other_s_per_byte += stage.transfer_s(1)
        for link in graph.path(*stage.farthest):
            if link.link_class == slowest.link_class:
                own_rounds += stage.rounds
                other_s += stage.rounds * (link.cost.alpha_s - slowest.cost.alpha_s)
            else:
                other_s += stage.rounds * link.cost.alpha_s
    slope = line.slope_s_per_byte - other_s_per_byte
    if slope <= 0 or not own_load:
        return None
    alpha_s = max(0.0, line.intercept_s - other_s) / own_rounds if own_rounds else 0.0
    return LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=own_load / slope)
