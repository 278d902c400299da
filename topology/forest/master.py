"""How much of each known tree: the linear programme of an all-reduce over given trees.

Out-trees and in-trees are separate columns; per root as much is reduced as is broadcast. So each
new tree can be used with every tree of its root, and few rounds of new trees are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csc_array

from trainmesh.errors import PlanError
from trainmesh.topology.forest.pricing import PricedTree

__all__ = ["Columns", "Floats", "Shares"]

Floats = NDArray[np.float64]


class Shares(NamedTuple):
    """``rate`` of the all-reduce, the weight of each column (a basic solution: few are above 0),
    and the arcs' shadow prices."""

    rate: float
    weights: Floats
    prices: Floats


@dataclass
class Columns:
    """Trees, each with whether it is an in-tree, and the capacity of the arcs, in a unit in which
    the rate is not far below 1."""

    capacity: Floats
    ranks: int
    trees: list[tuple[PricedTree, bool]] = field(default_factory=list)
    _known: set[tuple[bool, int, frozenset[object]]] = field(default_factory=set)
    _columns: list[Floats] = field(default_factory=list)

    def add(self, tree: PricedTree, *, inwards: bool) -> bool:
        """Whether it is a new one."""
        key = inwards, tree.root, frozenset(tree.edges)
        if key in self._known:
            return False
        self._known.add(key)
        at_root = np.zeros(self.ranks)
        at_root[tree.root] = -1 if inwards else 1
        self.trees.append((tree, inwards))
        self._columns.append(np.concatenate([tree.load / self.capacity, at_root]))
        return True

    def solve(self, chosen: Sequence[int] | None = None) -> Shares:
        """The best weights for the trees, or for those with the indices ``chosen``."""
        chosen = range(len(self.trees)) if chosen is None else chosen
        gain = [0.0 if self.trees[index][1] else -1.0 for index in chosen]
        found = linprog(
            gain,
            A_ub=csc_array(np.column_stack([self._columns[index] for index in chosen])),
            b_ub=np.concatenate([np.ones(len(self.capacity)), np.zeros(self.ranks)]),
            method="highs-ds",
        )
        if found.status:
            raise PlanError(f"HiGHS can't solve the programme of an all-reduce: {found.message}")
        prices = -found.ineqlin.marginals[: len(self.capacity)] / self.capacity
        return Shares(-float(found.fun), found.x, prices)
