"""As much of the capacities as trees can use: at every switch as much in as out.

A switch only forwards, so what it gets beyond what it can send on, or the other way round, is of no
use; but which links to cut back is a choice. It is made by a (mixed-integer) linear programme:
least scale U such that capacities c <= U b are balanced at switches and every set X of nodes with a
rank in it has k capacity in for each rank outside. Sets are added as min-cuts show them missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from trainmesh.topology.forest.fabric import Fabric
from trainmesh.topology.forest.rooted import shortage

__all__ = ["GRID", "is_balanced", "trimmed", "whole_trimmed"]

GRID = 2**16
"""Trees a rank that a continuous solution is rounded to, if that many can be counted."""
ROUNDS = 60
"""Of adding the cuts that a solution violates; after so many the search gives up."""
NODES = 100
"""Limits of cut generation and of branch and bound, far above what graphs of 24 ranks need."""
THRIFT = 1e-6
"""Weight of unused capacity against U, to leave out what is not needed."""

Arc = tuple[int, int]
Floats = NDArray[np.float64]


def is_balanced(fabric: Fabric, capacity: Sequence[int | Fraction]) -> bool:
    """Whether every switch has exactly as much in as out."""
    excess = [Fraction(0)] * fabric.size
    for (tail, head), value in zip(fabric.arcs, capacity, strict=True):
        excess[head] += value
        excess[tail] -= value
    return not any(excess[fabric.ranks :])


def whole_trimmed(fabric: Fabric, trees: int, x: Fraction) -> list[int] | None:
    """Balanced whole capacities that hold ``trees`` trees for each rank, of nearly the least scale;
    None if the search gave up. ``x`` is about the rate of a rank's trees together."""
    programme = _Programme(fabric, trees, x, whole=True)
    for _ in range(ROUNDS):
        found = programme.solve()
        if found is None:
            return None
        whole = [round(value) for value in found]
        if not programme.add_missing(whole, trees):
            return whole
    return None


def trimmed(fabric: Fabric, x: Fraction) -> list[int] | None:
    """Balanced whole capacities in the best proportions, a fine grid's width to a rank's broadcast
    or a little less; None if ranks can't reach each other. ``x`` is about its rate."""
    programme = _Programme(fabric, 1, x, whole=False)
    grid = min(GRID, fabric.most_trees)
    whole = None
    for _ in range(ROUNDS):
        found = programme.solve()
        if found is None:
            return None
        whole = _rebalanced(fabric, np.floor(np.maximum(found, 0) * grid).astype(int).tolist())
        # Rounding takes up to one from every link of a cut.
        if not programme.add_missing(whole, grid - len(fabric.arcs)):
            return whole
    return whole


class _Programme:
    """Variables are the capacities of the arcs and, last, U x."""

    def __init__(self, fabric: Fabric, trees: int, x: Fraction, *, whole: bool) -> None:
        self.fabric, self.trees = fabric, trees
        arcs = len(fabric.arcs)
        self.tails = np.array([tail for tail, _ in fabric.arcs])
        self.heads = np.array([head for _, head in fabric.arcs])
        self.integrality = np.append(np.full(arcs, int(whole)), 0)
        self.cost = np.append(np.full(arcs, THRIFT / (arcs * fabric.ranks)), 1.0)
        per_unit = [float(x / capacity) for capacity in fabric.capacity]
        within = np.hstack([np.diag(per_unit), np.full((arcs, 1), -1.0)])
        nodes = np.arange(fabric.ranks, fabric.size)[:, None]
        conserved = (self.heads == nodes).astype(float) - (self.tails == nodes)
        balance = np.hstack([conserved, np.zeros((len(conserved), 1))])
        self.fixed = [
            LinearConstraint(csr_array(within), ub=0),
            LinearConstraint(csr_array(balance), 0, 0),
        ]
        self.sets: list[Floats] = []
        self.needs: list[float] = []
        everything = np.ones(fabric.size + 1, dtype=bool)
        for rank in range(fabric.ranks):
            alone = ~everything
            alone[rank] = True
            self._add(alone)
            self._add(~alone)

    def solve(self) -> Floats | None:
        """Capacities of the arcs."""
        cuts = LinearConstraint(csr_array(np.array(self.sets)), lb=self.needs)
        found = milp(
            self.cost,
            constraints=[*self.fixed, cuts],
            integrality=self.integrality,
            bounds=Bounds(0, np.inf),
            options={"node_limit": NODES, "mip_rel_gap": 1e-3},
        )
        return None if found.x is None else np.asarray(found.x[:-1])

    def add_missing(self, whole: Sequence[int], trees: int) -> bool:
        """Add the sets that have not enough in; False if there are none."""
        rooted = self.fabric.rooted(whole, [trees] * self.fabric.ranks)
        short = [shortage(rooted, rank) for rank in range(self.fabric.ranks)]
        added = [self._add(missing.inside) for missing in short if missing]
        return any(added)

    def _add(self, inside: NDArray[np.bool_]) -> bool:
        """Whether this asks for more than is known. Several sets may have the same links in: the
        one with most ranks outside counts."""
        row = np.append((inside[self.heads] & ~inside[self.tails]).astype(float), 0.0)
        need = self.trees * (self.fabric.ranks - int(inside[: self.fabric.ranks].sum()))
        for number, known in enumerate(self.sets):
            if (row == known).all():
                more = need > self.needs[number]
                self.needs[number] = max(need, self.needs[number])
                return more
        self.sets.append(row)
        self.needs.append(need)
        return True


def _rebalanced(fabric: Fabric, whole: Sequence[int]) -> list[int]:
    """``whole`` less the little that unbalances switches: each surplus is taken off a shortest way
    to where it can end, a rank or a switch with the opposite fault."""
    left = dict(zip(fabric.arcs, whole, strict=True))
    excess = [0] * fabric.size
    for (tail, head), value in left.items():
        excess[head] += value
        excess[tail] -= value
    for sign in (1, -1):
        for switch in range(fabric.ranks, fabric.size):
            while sign * excess[switch] > 0:
                way = _way_off(fabric, left, switch, excess)
                end = way[-1][0 if sign > 0 else 1]
                amount = min(sign * excess[switch], *(left[arc] for arc in way))
                if end >= fabric.ranks:
                    amount = min(amount, -sign * excess[end])
                    excess[end] += sign * amount
                excess[switch] -= sign * amount
                for arc in way:
                    left[arc] -= amount
    return [left[arc] for arc in fabric.arcs]


def _way_off(fabric: Fabric, left: dict[Arc, int], switch: int, excess: list[int]) -> list[Arc]:
    """A shortest way over what is left, backwards from a switch with too much coming in, else
    forwards, to a rank or a switch with the opposite fault. There is one, as what comes in at any
    other switch goes on."""
    near, far = (1, 0) if excess[switch] > 0 else (0, 1)
    ways: dict[int, list[Arc]] = {switch: []}
    queue = [switch]
    for here in queue:
        if here < fabric.ranks or excess[here] * excess[switch] < 0:
            return ways[here]
        for arc in fabric.arcs:
            if arc[near] == here and left[arc] and arc[far] not in ways:
                ways[arc[far]] = [*ways[here], arc]
                queue.append(arc[far])
    raise AssertionError("what comes in somewhere goes on")
