"""A graph of ranks and switches with exact capacities, numbered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from trainmesh.errors import GraphError
from trainmesh.topology.flow import INT32_MAX
from trainmesh.topology.forest.rooted import Matrix, Rooted
from trainmesh.topology.forest.trees import Arc, Number
from trainmesh.types import Hop

__all__ = ["Fabric"]


@dataclass(frozen=True)
class Fabric:
    """Nodes 0..ranks-1 are the ranks, the others switches. ``capacity[i]`` is that of
    ``arcs[i]``, above 0."""

    names: tuple[str, ...]
    ranks: int
    arcs: tuple[tuple[int, int], ...]
    capacity: tuple[Fraction, ...]

    @classmethod
    def of(cls, ranks: Sequence[str], capacities: Mapping[Arc, Number]) -> Fabric:
        """
        Raises:
            GraphError: fewer than two ranks, a rank twice, or a capacity that is not a number.
        """
        if len(ranks) < 2 or len(set(ranks)) != len(ranks):
            raise GraphError(f"a forest needs two different ranks or more, got {list(ranks)}")
        for (src, dst), capacity in capacities.items():
            if not 0 <= capacity < float("inf"):
                raise GraphError(f"link {src}->{dst}: capacity {capacity} is not a bandwidth")
        known = set(ranks)
        others = dict.fromkeys(name for arc in capacities for name in arc if name not in known)
        names = (*ranks, *others)
        number = {name: index for index, name in enumerate(names)}
        kept = {arc: c for arc, c in capacities.items() if c > 0 and arc[0] != arc[1]}
        return cls(
            names,
            len(ranks),
            tuple((number[src], number[dst]) for src, dst in kept),
            tuple(Fraction(c) for c in kept.values()),
        )

    @property
    def size(self) -> int:
        return len(self.names)

    def rooted(self, whole: Sequence[int], amounts: Sequence[int]) -> Rooted:
        """``whole[i]`` as the capacity of arc i; ``amounts[r]`` trees start at rank r."""
        matrix: Matrix = np.zeros((self.size + 1, self.size + 1), np.int64)
        for arc, capacity in zip(self.arcs, whole, strict=True):
            matrix[arc] = capacity
        matrix[self.size, : self.ranks] = amounts
        return Rooted(self.ranks, matrix)

    def clipped(self, most: Fraction) -> Fabric:
        """No capacity above ``most``."""
        return replace(self, capacity=tuple(min(capacity, most) for capacity in self.capacity))

    @property
    def most_trees(self) -> int:
        """Trees a rank that min-cuts can count."""
        return INT32_MAX // (2 * self.ranks * (self.size + 1))

    def hop(self, src: int, dst: int, via: Sequence[int]) -> Hop:
        return Hop(src, dst, tuple(self.names[node] for node in via))
