"""All-gather over trees: every rank's shard is broadcast, at the same time, at the largest rate
that the graph's cuts allow (ForestColl, arXiv 2402.06787).

A reduce-scatter is the all-gather of the reversed graph with its hops reversed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

from trainmesh.errors import PlanError
from trainmesh.topology.forest.fabric import Fabric
from trainmesh.topology.forest.packing import packed
from trainmesh.topology.forest.scale import Scaled, few_trees, optimal
from trainmesh.topology.forest.splitting import without_switches
from trainmesh.topology.forest.trees import Arc, Number, OutTree

__all__ = ["Forest", "allgather_forest"]

ATTEMPTS = 3
"""Forests built to find one within the limit, before those that are sure to be."""


@dataclass(frozen=True)
class Forest:
    """``rate``: the bandwidth of each rank's broadcast, the sum of the weights of its trees;
    ``efficiency``: its part of the optimum over all cuts, below 1 if the number of trees is
    limited or if switches have more capacity one way than the other."""

    trees: tuple[OutTree, ...]
    rate: Fraction
    efficiency: Fraction


def allgather_forest(
    ranks: Sequence[str],
    capacities: Mapping[Arc, Number],
    x: Fraction,
    *,
    max_trees: int | None = None,
) -> Forest:
    """The forest for ``ranks`` (node names in rank order), all other nodes being switches.

    Args:
        x: The optimum: the least capacity out of a set of nodes for each rank in it, over all
            sets that leave out a rank. In the capacities' unit, exactly.
        max_trees: Trade rate for fewer trees; one for each rank at least.

    Raises:
        PlanError: ``max_trees`` is less than the number of ranks, or a rank can't be reached.
        GraphError: ranks or capacities make no sense.
    """
    fabric = Fabric.of(ranks, capacities)
    if max_trees is not None and max_trees < fabric.ranks:
        raise PlanError(f"max_trees is {max_trees}: each of the {fabric.ranks} ranks needs a tree")
    x = Fraction(x)
    # No link carries more than N trees over N - 1 hops each.
    fabric = fabric.clipped(x * fabric.ranks**2)
    best = optimal(fabric, x) if x > 0 else None
    if best is None:
        raise PlanError("no forest: over switches that only forward, some rank can't reach another")
    trees = _trees(fabric, best, spread=True)
    if max_trees is not None and len(trees) > max_trees:
        for scaled in chain([best], _fewer(fabric, best.rate, max_trees)):
            trees = _trees(fabric, scaled, spread=False)
            if len(trees) <= max_trees:
                return Forest(trees, scaled.rate, scaled.rate / x)
        raise PlanError(f"no forest of {max_trees} trees was found: allow more")
    return Forest(trees, best.rate, best.rate / x)


def _fewer(fabric: Fabric, x: Fraction, max_trees: int) -> Iterator[Scaled]:
    """The best first; the last one has few enough trees for sure."""
    sure = max_trees // fabric.ranks
    found = [few_trees(fabric, trees, x) for trees in range(1, max(2 * sure, sure + 4) + 1)]
    ordered = sorted((s for s in found if s is not None), key=lambda s: (-s.rate, s.trees))
    safe = next((s for s in ordered if s.trees <= sure), None)
    above = ordered[: ordered.index(safe)] if safe else ordered
    yield from above[:ATTEMPTS]
    if safe:
        yield safe


def _trees(fabric: Fabric, scaled: Scaled, *, spread: bool) -> tuple[OutTree, ...]:
    amounts = [scaled.trees] * fabric.ranks
    ways = without_switches(fabric.rooted(scaled.whole, amounts), spread=spread)
    each = scaled.rate / scaled.trees
    return tuple(
        OutTree(
            tree.members[0],
            tree.count * each,
            tuple(fabric.hop(*branch) for branch in tree.branches),
        )
        for tree in packed(amounts, ways)
    )
