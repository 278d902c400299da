"""All-reduce over pairs of trees: a share of the data is reduced over an in-tree into a root and
broadcast over an out-tree from it, at the largest rate at which no link is overloaded.

That is a packing programme with a column for each tree, solved by column generation: given prices
of the links, cheapest arborescences are the trees to add. Any prices p >= 0 also prove a bound: a
rate R costs at least R times the cheapest pair and at most what all capacity is worth, so
``R <= sum of b p / cheapest pair``. New trees are sought half way between the prices that prove the
best bound and those of the programme, which keeps these from jumping about (Wentges 1997).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainmesh.errors import PlanError
from trainmesh.topology.forest.fabric import Fabric
from trainmesh.topology.forest.master import Columns, Floats, Shares
from trainmesh.topology.forest.pricing import PricedTree, Pricing
from trainmesh.topology.forest.trees import Arc, Number, Pair, loads

__all__ = ["PairForest", "allreduce_forest"]

TOLERANCE = 1e-3
"""Part of the bound at which the search stops."""
SMOOTHING = 0.5
"""Weight of the prices that prove the best bound."""
TIE = 1e-9
"""Part of the prices that is there only to prefer trees with little load among equal ones."""
UNUSED = 1e-9
"""Weights below this part of the rate are rounding."""
THINNED = 0.1
"""Part of the trees above the limit that goes at a time."""
ROUNDING = 1e-12
"""Left free on every link, so that floating point fills none above its capacity."""


@dataclass(frozen=True)
class PairForest:
    """``rate`` is the sum of the weights, ``full_rate`` what more pairs would reach, ``bound`` the
    proof that no pairs exceed it: at ``prices`` every pair costs 1 or more, and all capacity
    together is worth ``bound``."""

    pairs: tuple[Pair, ...]
    rate: float
    full_rate: float
    bound: float
    prices: dict[Arc, float]


def allreduce_forest(
    ranks: Sequence[str],
    capacities: Mapping[Arc, Number],
    *,
    target: float | None = None,
    max_trees: int = 64,
    max_rounds: int = 200,
) -> PairForest:
    """The forest for ``ranks`` (node names in rank order), all other nodes being switches.

    Args:
        target: A bound known from elsewhere; the search ends close to it.
        max_trees: The most pairs; fewer cost rate.
        max_rounds: The most rounds of new trees. Fewer than 100 are needed for 32 ranks.

    Raises:
        PlanError: ``max_trees`` is below 1, or no rank can both be reached by all and reach all.
        GraphError: ranks or capacities make no sense.
    """
    if max_trees < 1:
        raise PlanError(f"max_trees is {max_trees}: at least one is needed")
    fabric = Fabric.of(ranks, capacities)
    given = np.array([float(capacity) for capacity in fabric.capacity])
    # A bound, and not more than the number of links above what one pair reaches.
    unit = len(given) / min(offer.cost for offer in _offers(Pricing(fabric, 1 / given)))
    search = _Search(fabric, given / unit)
    shares = search.run(math.inf if target is None else target / unit, max_rounds)
    chosen = _thinned(search.columns, shares, max_trees)
    pairs = _fitted(ranks, capacities, [_named(fabric, pair, unit) for pair in chosen])
    return PairForest(
        pairs,
        float(sum(pair.weight for pair in pairs)),
        shares.rate * unit,
        search.bound * unit,
        {
            (fabric.names[tail], fabric.names[head]): float(price)
            for (tail, head), price in zip(fabric.arcs, search.prices, strict=True)
        },
    )


class _Offer(NamedTuple):
    """The cheapest trees of a root and what they cost together."""

    into: PricedTree
    out: PricedTree
    cost: float


def _offers(pricing: Pricing) -> list[_Offer]:
    """For every root that has trees."""
    offers = []
    for root in range(len(pricing.costs)):
        into, out = pricing.cheapest(root, inwards=True), pricing.cheapest(root)
        if into and out:
            offers.append(_Offer(into[0], out[0], into[1] + out[1]))
    if not offers:
        raise PlanError("no forest: over switches, no rank both reaches all and is reached")
    return offers


class _Search:
    """Column generation; ``prices`` are those that prove ``bound``."""

    def __init__(self, fabric: Fabric, capacity: Floats) -> None:
        self.fabric, self.capacity = fabric, capacity
        self.columns = Columns(capacity, fabric.ranks)
        self.bound = math.inf
        self.prices: Floats = 1 / capacity

    def run(self, target: float, max_rounds: int) -> Shares:
        self._priced(self.prices)
        shares = self.columns.solve()
        for _ in range(max_rounds):
            if shares.rate >= (1 - TOLERANCE) * min(self.bound, target):
                break
            worth = float(self.capacity @ self.prices)
            found = self._priced(
                SMOOTHING * self.prices / worth + (1 - SMOOTHING) * shares.prices / shares.rate
            )
            if not found and not self._priced(shares.prices):
                break
            shares = self.columns.solve()
        return shares

    def _priced(self, prices: Floats) -> bool:
        """Add the cheapest trees of every root; whether there are new ones."""
        prices = prices / float(self.capacity @ prices) + TIE / self.capacity
        offers = _offers(Pricing(self.fabric, prices))
        found = False
        for offer in offers:
            found |= self.columns.add(offer.into, inwards=True)
            found |= self.columns.add(offer.out, inwards=False)
        least = min(offer.cost for offer in offers)
        if (bound := float(self.capacity @ prices) / least) < self.bound:
            self.bound, self.prices = bound, prices / least
        return found


class _Joined(NamedTuple):
    into: PricedTree
    out: PricedTree
    weight: float


def _thinned(columns: Columns, shares: Shares, max_trees: int) -> list[_Joined]:
    """At most ``max_trees`` pairs: while there are more, the trees with the least weight go and
    the others are weighed again."""
    chosen: list[int] = list(range(len(columns.trees)))
    while True:
        used = sorted(
            (weight, index)
            for weight, index in zip(shares.weights.tolist(), chosen, strict=True)
            if weight > UNUSED * shares.rate
        )
        pairs = _joined(columns, used)
        if len(pairs) <= max_trees:
            return pairs
        surplus = len(pairs) - max_trees
        chosen = [index for _, index in used[math.ceil(THINNED * surplus) :]]
        shares = columns.solve(chosen)


def _joined(columns: Columns, used: Sequence[tuple[float, int]]) -> list[_Joined]:
    """Of each root the heaviest in-tree and out-tree together, then what is left of them."""
    pairs = []
    for root in range(columns.ranks):
        mine = [(w, *columns.trees[i]) for w, i in used if columns.trees[i][0].root == root]
        into = [(weight, tree) for weight, tree, inwards in mine if inwards]
        out = [(weight, tree) for weight, tree, inwards in mine if not inwards]
        while into and out:
            (some, up), (other, down) = into.pop(), out.pop()
            weight = min(some, other)
            pairs.append(_Joined(up, down, weight))
            for rest, tree, heap in ((some - weight, up, into), (other - weight, down, out)):
                if rest > UNUSED * weight:
                    heap.append((rest, tree))
    return pairs


def _named(fabric: Fabric, pair: _Joined, unit: float) -> Pair:
    return Pair(
        pair.out.root,
        pair.weight * unit,
        tuple(fabric.hop(*edge) for edge in pair.into.edges),
        tuple(fabric.hop(*edge) for edge in pair.out.edges),
    )


def _fitted(
    ranks: Sequence[str], capacities: Mapping[Arc, Number], pairs: Sequence[Pair]
) -> tuple[Pair, ...]:
    """Scaled by what the programme's rounding overloads a link, and a hair more."""
    over = max(float(load / capacities[arc]) for arc, load in loads(ranks, pairs).items())
    factor = (1 - ROUNDING) / max(1.0, over)
    return tuple(Pair(p.root, p.weight * factor, p.up, p.down) for p in pairs)
