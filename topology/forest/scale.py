"""Bandwidths as whole numbers of trees.

With k trees for each rank, each of bandwidth 1 / U, a link of bandwidth b carries floor(U b) trees.
The bandwidth of a rank's broadcast is k / U: the optimum x if U = k / x is enough. It is for the
least U that makes all U b and U x whole numbers, often for a smaller one, and nearly for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import gcd, lcm

import numpy as np

from trainmesh.topology.forest.balance import is_balanced, trimmed, whole_trimmed
from trainmesh.topology.forest.fabric import Fabric
from trainmesh.topology.forest.rooted import shortage

__all__ = ["Scaled", "few_trees", "optimal"]

TRIED = 64
"""Numbers of trees a rank that are tried for the exact optimum before the one that must do."""
NEARLY = Fraction(9995, 10_000)
"""Good enough a part of the optimum for few trees where links had to be cut back."""
FEW = 8
"""Numbers of trees that are tried before the fine grid's: few trees make a short plan."""


@dataclass(frozen=True)
class Scaled:
    """``trees`` for each rank in ``whole`` capacities; ``rate`` is a rank's bandwidth."""

    trees: int
    whole: tuple[int, ...]
    rate: Fraction


def optimal(fabric: Fabric, x: Fraction) -> Scaled | None:
    """The fewest trees with which rate ``x``, the optimum, is reached; as much of it as possible
    where switches have more capacity one way than the other, which the optimum takes no notice
    of, where exact numbers would be too large, or if ``x`` is more than can be reached. None if
    some rank can't reach another."""
    if not is_balanced(fabric, fabric.capacity):
        return _best_trimmed(fabric, x)
    enough = _unit(*fabric.capacity, x)
    most = int(x / enough)
    for trees in range(1, min(TRIED, most) + 1):
        found = _floored(fabric, trees, trees / x)
        if _holds(fabric, found):
            return found
    if TRIED < most <= fabric.most_trees:
        found = _floored(fabric, most, 1 / enough)
        if _holds(fabric, found):
            return found
    return _on_grid(fabric, x)


def few_trees(fabric: Fabric, trees: int, x: Fraction) -> Scaled | None:
    """The best with ``trees`` for each rank; None if it wasn't found."""
    found = _floored(fabric, trees, trees / x)
    while (scale := _larger(fabric, found)) is not None:
        found = _floored(fabric, trees, scale)
    if is_balanced(fabric, found.whole):
        return found
    whole = whole_trimmed(fabric, trees, x)
    return None if whole is None else _scaled(fabric, trees, whole)


def _best_trimmed(fabric: Fabric, x: Fraction) -> Scaled | None:
    best = _on_grid(fabric, x)
    if best is not None:
        for trees in range(1, FEW + 1):
            whole = whole_trimmed(fabric, trees, x)
            few = None if whole is None else _scaled(fabric, trees, whole)
            if few and few.rate >= best.rate * NEARLY:
                return few
    return best


def _on_grid(fabric: Fabric, x: Fraction) -> Scaled | None:
    """A fine grid: the loss is below one in some thousands."""
    whole = trimmed(fabric, x)
    if whole is None:
        return None
    trees = _held(fabric, whole)
    return _scaled(fabric, trees, whole) if trees else None


def _held(fabric: Fabric, whole: Sequence[int]) -> int:
    """How many trees for each rank ``whole`` holds (Newton on the cuts)."""
    trees = min(
        sum(c for arc, c in zip(fabric.arcs, whole, strict=True) if arc[1] == rank)
        // (fabric.ranks - 1)
        for rank in range(fabric.ranks)
    )
    for rank in range(fabric.ranks):
        while trees and (short := shortage(fabric.rooted(whole, [trees] * fabric.ranks), rank)):
            outside = fabric.ranks - int(np.count_nonzero(short.inside[: fabric.ranks]))
            trees -= -(-short.missing // outside)
    return trees


def _floored(fabric: Fabric, trees: int, scale: Fraction) -> Scaled:
    whole = tuple(int(c * scale) for c in fabric.capacity)
    return Scaled(trees, whole, trees / scale)


def _scaled(fabric: Fabric, trees: int, whole: Sequence[int]) -> Scaled:
    """The rate at which ``whole`` fits into the capacities."""
    scale = max(w / c for w, c in zip(whole, fabric.capacity, strict=True))
    return Scaled(trees, tuple(whole), trees / scale)


def _holds(fabric: Fabric, scaled: Scaled) -> bool:
    rooted = fabric.rooted(scaled.whole, [scaled.trees] * fabric.ranks)
    return is_balanced(fabric, scaled.whole) and not any(
        shortage(rooted, rank) for rank in range(fabric.ranks)
    )


def _larger(fabric: Fabric, scaled: Scaled) -> Fraction | None:
    """The least scale with which a set that too few trees enter lets enough in; None if no set
    does."""
    rooted = fabric.rooted(scaled.whole, [scaled.trees] * fabric.ranks)
    for rank in range(fabric.ranks):
        if short := shortage(rooted, rank):
            entering = [
                (capacity, whole)
                for (tail, head), capacity, whole in zip(
                    fabric.arcs, fabric.capacity, scaled.whole, strict=True
                )
                if short.inside[head] and not short.inside[tail]
            ]
            return _scale_for(entering, short.missing)
    return None


def _scale_for(links: Sequence[tuple[Fraction, int]], missing: int) -> Fraction:
    """The least scale at which ``links`` (capacity, trees) hold ``missing`` trees more."""
    total = sum(whole for _, whole in links) + missing
    wanted = [whole for _, whole in links]
    scale = Fraction(0)
    while sum(wanted) < total:
        steps = [(whole + 1) / c for (c, _), whole in zip(links, wanted, strict=True)]
        scale = min(steps)
        wanted = [w + (step == scale) for w, step in zip(wanted, steps, strict=True)]
    return scale


def _unit(*values: Fraction) -> Fraction:
    """The largest number that all values are whole multiples of."""
    multiple = reduce(lcm, (value.denominator for value in values))
    return Fraction(reduce(gcd, (int(value * multiple) for value in values)), multiple)
