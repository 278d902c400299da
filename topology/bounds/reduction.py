"""The optimum over reduce-then-broadcast forests for an all-reduce, by a linear programme.

Bytes are reduced into their root over in-trees and broadcast from there over out-trees. With
``z_r`` the rate rooted at rank r, and ``a`` and ``c`` the capacity given to broadcasting and
reducing on each link: maximise ``R = sum z_r`` so that ``a + c <= b`` on every link, switches
pass on what they get, and every set X that holds a rank takes in at least what is rooted outside
it (Edmonds: then and only then the trees exist), ``a(into X) >= sum of z_r outside X``, and the
same for ``c`` out of X. There are too many sets to write down; those that a solution violates are
found by max-flows and added until none is left. Every step on the way is an upper bound of R.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from trainmesh.errors import PlanError
from trainmesh.topology.bounds.partition import Volume, volume
from trainmesh.topology.clusters import Groups
from trainmesh.topology.flow import FlowNetwork
from trainmesh.topology.indexed import Indexed

__all__ = ["Reduction", "reduction_optimum"]

Floats = NDArray[np.float64]
MAX_ROUNDS = 60
"""Of adding cuts that the solution violates; far more than graphs take, but the search must end."""
SCALE = 2**30
"""Whole numbers that a solution's rate is cut into for max-flows."""
VIOLATED = 1e-6
"""A set that takes in less than this share too little is not violated: rounding."""
MAX_SPREAD = 10**6
"""The solver's feasibility is 1e-7 of the widest link."""
PRICED = 1e-7
"""A price below this share of the largest is taken for the solver's rounding."""
TOLERANCE = Fraction(1, 10**9)
"""Of the solver; a simple fraction this near is the rate."""
SIMPLE = 1_000
"""Largest denominator of a simple fraction, in units of the common divisor of all links."""


@dataclass(frozen=True)
class Reduction:
    """``rate``: no forest's algbw is above it, in the graph's units. ``edges`` are the links
    whose capacity limits it; ``groups`` the sets of nodes that they hold apart if these alone
    prove the rate (``partition.volume``), else empty. ``exact``: some forest reaches it."""

    rate: Fraction
    edges: tuple[int, ...]
    groups: Groups
    exact: bool


def reduction_optimum(graph: Indexed, seeds: Collection[frozenset[int]]) -> Reduction | None:
    """Solve the programme; ``seeds`` are sets of nodes to begin with. None where links differ by
    more than the solver tells apart."""
    capacities = [edge[2] for edge in graph.edges]
    if max(capacities) > MAX_SPREAD * min(capacities):
        return None
    programme = _Programme(graph, seeds)
    exact = False
    for _ in range(MAX_ROUNDS):
        solution = programme.solve()
        if not programme.cut_off(solution):
            exact = True
            break
    if solution.rate <= 0:
        return None
    edges = tuple(np.flatnonzero(solution.prices > PRICED * solution.prices.max()).tolist())
    proven = _held_apart(graph, edges)
    found = Fraction(solution.rate) * programme.widest
    if proven is not None and abs(proven.capacity / found - 1) < VIOLATED:
        return Reduction(proven.capacity, edges, proven.groups, exact)
    return Reduction(_rounded(found), edges, (), exact)


def _rounded(rate: Fraction) -> Fraction:
    """The simple fraction that the solver's tolerance hides, or, without one near, a little more:
    a bound must not be one that a plan could beat."""
    simple = rate.limit_denominator(SIMPLE)
    return simple if abs(simple / rate - 1) < TOLERANCE else rate * (1 + TOLERANCE)


@dataclass(frozen=True)
class _Solution:
    rate: float
    down: Floats
    up: Floats
    rooted: Floats
    prices: Floats


class _Programme:
    """Variables: a by link, c by link (those of the opposite links where the graph is the same
    both ways), z by rank. Capacities are divided by the widest one."""

    def __init__(self, graph: Indexed, seeds: Collection[frozenset[int]]) -> None:
        self._graph = graph
        self._count = len(graph.edges)
        self._tails = np.array([edge[0] for edge in graph.edges])
        self._heads = np.array([edge[1] for edge in graph.edges])
        self.widest = max(edge[2] for edge in graph.edges)
        self._capacity = np.array([float(Fraction(e[2], self.widest)) for e in graph.edges])
        self._ranks = np.array(graph.ranks)
        self._mirror = _mirror(graph)
        self._first_root = self._count * (1 if self._mirror is not None else 2)
        self._sets: set[frozenset[int]] = set()
        self._rows: list[tuple[NDArray[np.int64], Floats]] = []
        everything = frozenset(range(graph.size))
        for node in graph.ranks:
            self._add(frozenset({node}))
            self._add(everything - {node})
        for nodes in seeds:
            self._add(nodes)
            self._add(everything - nodes)

    def solve(self) -> _Solution:
        size = self._first_root + len(self._ranks)
        objective = np.zeros(size)
        objective[self._first_root :] = -1.0
        capacity = self._capacity_rows()
        cuts = len(self._rows)
        columns = np.concatenate([capacity[1], *(row for row, _ in self._rows)])
        values = np.concatenate([np.ones(len(capacity[1])), *(v for _, v in self._rows)])
        lengths = [len(row) for row, _ in self._rows]
        rows = np.concatenate(
            [capacity[0], np.repeat(np.arange(self._count, self._count + cuts), lengths)]
        )
        upper = coo_array((values, (rows, columns)), shape=(self._count + cuts, size))
        balance = self._balance(size)
        found: Any = linprog(
            objective,
            A_ub=upper.tocsr(),
            b_ub=np.concatenate([self._capacity, np.zeros(cuts)]),
            A_eq=balance,
            b_eq=None if balance is None else np.zeros(balance.shape[0]),
            method="highs",
        )
        if found.status != 0:
            raise PlanError(f"the bound of all-reduce can't be computed: {found.message}")
        down = found.x[: self._count]
        up = (
            down[self._mirror]
            if self._mirror is not None
            else found.x[self._count :][: self._count]
        )
        prices = -found.ineqlin.marginals[: self._count]
        return _Solution(-found.fun, down, up, found.x[self._first_root :], prices)

    def cut_off(self, solution: _Solution) -> int:
        """Add the sets that ``solution`` violates; how many these were."""
        before = len(self._rows)
        self._separate(solution, solution.down, self._tails, self._heads)
        if self._mirror is None:
            self._separate(solution, solution.up, self._heads, self._tails)
        return len(self._rows) - before

    def _separate(
        self, solution: _Solution, given: Floats, tails: NDArray[Any], heads: NDArray[Any]
    ) -> None:
        scale = SCALE / max(solution.rate, 1e-300)
        source = self._graph.size
        whole = np.rint(given * scale).astype(np.int64).tolist()
        edges = list(zip(tails.tolist(), heads.tolist(), whole, strict=True))
        roots = np.rint(solution.rooted * scale).astype(np.int64).tolist()
        edges += [(source, int(node), z) for node, z in zip(self._ranks, roots, strict=True)]
        network = FlowNetwork(source + 1, edges)
        enough = (1 - VIOLATED) * SCALE
        for node in self._graph.ranks:
            flow, side = network.min_cut(source, node)
            if flow < enough:
                self._add(frozenset(range(self._graph.size)) - side)

    def _add(self, nodes: frozenset[int]) -> None:
        """``sum of z outside - a(into nodes) <= 0``, and the same for c out of them."""
        if nodes in self._sets:
            return
        self._sets.add(nodes)
        inside = np.zeros(self._graph.size, bool)
        inside[list(nodes)] = True
        outside = np.flatnonzero(~inside[self._ranks]) + self._first_root
        if not len(outside) or len(outside) == len(self._ranks):
            return
        into = np.flatnonzero(~inside[self._tails] & inside[self._heads])
        out = np.flatnonzero(inside[self._tails] & ~inside[self._heads])
        ways = [into] if self._mirror is not None else [into, out + self._count]
        for way in ways:
            values = np.concatenate([-np.ones(len(way)), np.ones(len(outside))])
            self._rows.append((np.concatenate([way, outside]), values))

    def _capacity_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        links = np.arange(self._count)
        other = self._mirror if self._mirror is not None else links + self._count
        return np.concatenate([links, links]), np.concatenate([links, other])

    def _balance(self, size: int) -> Any:
        """Switches pass on what they get, for broadcasting and for reducing."""
        forwards = np.ones(self._graph.size, bool)
        forwards[self._ranks] = False
        number = np.cumsum(forwards) - 1
        switches = int(forwards.sum())
        if not switches:
            return None
        rows, columns, values = [], [], []
        kinds = 1 if self._mirror is not None else 2
        for kind in range(kinds):
            for ends, sign in ((self._heads, 1.0), (self._tails, -1.0)):
                links = np.flatnonzero(forwards[ends])
                rows.append(number[ends[links]] + kind * switches)
                columns.append(links + kind * self._count)
                values.append(np.full(len(links), sign))
        where = (np.concatenate(rows), np.concatenate(columns))
        return coo_array((np.concatenate(values), where), shape=(kinds * switches, size)).tocsr()


def _mirror(graph: Indexed) -> NDArray[np.int64] | None:
    """The number of each link's opposite link, if all have one of equal capacity."""
    number = {(tail, head): index for index, (tail, head, _) in enumerate(graph.edges)}
    mirror = []
    for tail, head, capacity in graph.edges:
        other = number.get((head, tail))
        if other is None or graph.edges[other][2] != capacity:
            return None
        mirror.append(other)
    return np.array(mirror, np.int64)


def _held_apart(graph: Indexed, edges: Collection[int]) -> Volume | None:
    """The bound of the sets of nodes that are joined by other links than ``edges``."""
    limiting = frozenset(edges)
    neighbours: list[list[int]] = [[] for _ in range(graph.size)]
    for index, (tail, head, _) in enumerate(graph.edges):
        if index not in limiting:
            neighbours[tail].append(head)
            neighbours[head].append(tail)
    groups: list[frozenset[int]] = []
    seen: set[int] = set()
    for node in graph.ranks:
        if node not in seen:
            group, waiting = {node}, [node]
            while waiting:
                for other in neighbours[waiting.pop()]:
                    if other not in group:
                        group.add(other)
                        waiting.append(other)
            seen |= group
            groups.append(frozenset(group))
    return volume(graph, tuple(groups)) if len(groups) > 1 else None
