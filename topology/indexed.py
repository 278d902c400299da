"""A link graph as numbered nodes and whole-number capacities: what the algorithms work on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import gcd, lcm

from trainmesh.topology.flow import Edge, FlowNetwork
from trainmesh.topology.graph import LinkGraph

__all__ = ["Indexed", "rational"]


def rational(bandwidth_bytes_per_s: float) -> Fraction:
    """The decimal number that was declared: 12 digits, as many as a topology document keeps."""
    return Fraction(f"{bandwidth_bytes_per_s:.11e}")


@dataclass(frozen=True)
class Indexed:
    """``ranks[r]`` is the node of rank r. A capacity times ``unit`` is in bytes/s, exactly."""

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    edges: tuple[Edge, ...]
    unit: Fraction

    @classmethod
    def of(cls, graph: LinkGraph) -> Indexed:
        names = tuple(node.name for node in graph.nodes)
        number = {name: index for index, name in enumerate(names)}
        exact = {b: rational(b) for b in {link.cost.bandwidth_bytes_per_s for link in graph.links}}
        multiple = reduce(lcm, (value.denominator for value in exact.values()), 1)
        divisor = reduce(gcd, (int(value * multiple) for value in exact.values()), 0) or 1
        whole = {b: int(value * multiple) // divisor for b, value in exact.items()}
        edges = tuple(
            (number[link.src], number[link.dst], whole[link.cost.bandwidth_bytes_per_s])
            for link in graph.links
        )
        ranks = tuple(number[graph.rank_node(rank)] for rank in range(graph.world_size))
        return cls(names, ranks, edges, Fraction(divisor, multiple))

    @property
    def size(self) -> int:
        return len(self.names)

    def reversed(self) -> Indexed:
        """Every link the other way round."""
        edges = tuple((head, tail, capacity) for tail, head, capacity in self.edges)
        return Indexed(self.names, self.ranks, edges, self.unit)

    def network(self) -> FlowNetwork:
        return FlowNetwork(self.size, self.edges)

    def leaving(self, side: Collection[int]) -> int:
        """Capacity of the links from ``side`` to the other nodes."""
        inside = frozenset(side)
        return sum(c for tail, head, c in self.edges if tail in inside and head not in inside)
