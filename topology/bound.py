"""The least time that any all-reduce needs on a graph.

Two bounds hold for every algorithm; the larger one counts.

- Cut: for a set S of nodes that separates ranks, everything outside needs what S contributes and
  everything inside needs what the others contribute, so M bytes leave S and M bytes enter it:
  ``T >= M / min over S of min(B+(S), B+(V - S))``, by max-flow between one rank and each other
  in both directions (any separating cut separates rank 0 from some rank). Most flows are not
  needed: what is joined to rank 0's side by links as wide as the best cut known can't be cut off
  by a smaller one.
- Volume: each element needs 2 (N - 1) messages that ranks send and ranks receive, as switches
  don't add: ``T >= 2 (N - 1) M / min(sum of egress, sum of ingress)`` (Zhou and Sun 2026).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
from networkx.algorithms.flow import build_residual_network, dinitz

from trainmesh.topology.graph import LinkGraph

__all__ = ["Bound", "bound"]

NEARLY = 1 - 1e-9
"""Differences below this factor are rounding."""


@dataclass(frozen=True)
class Bound:
    """``time_s`` for the asked number of bytes. ``cut`` holds the nodes on the sending side and
    ``links`` the links that leave it; both are empty for a volume bound."""

    time_s: float
    kind: str
    cut: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


def bound(graph: LinkGraph, nbytes: int) -> Bound:
    """All-reduce lower bound for ``nbytes`` on each rank; 0 s for one rank.

    Complexity: at most 2 (N - 1) max-flows; about one for each host in a cluster of equal hosts.
    """
    if graph.world_size == 1:
        return Bound(0.0, "none")
    capacity, cut = _tightest_cut(graph)
    by_cut_s = nbytes / capacity
    by_volume_s = 2 * (graph.world_size - 1) * nbytes / _volume_capacity(graph)
    if by_volume_s > by_cut_s / NEARLY:
        return Bound(by_volume_s, "volume")
    links = tuple(link.name for link in graph.links if link.src in cut and link.dst not in cut)
    return Bound(by_cut_s, "cut", tuple(sorted(cut)), links)


def _tightest_cut(graph: LinkGraph) -> tuple[float, frozenset[str]]:
    """Capacity (bytes/s) and sending side of the smallest cut that separates two ranks."""
    digraph = graph.digraph()
    best = _Cut(math.inf, frozenset())
    everything = frozenset(digraph)
    for rank in range(graph.world_size):
        name = graph.rank_node(rank)
        best = best.or_smaller(digraph.out_degree(name, weight="capacity"), {name})
        best = best.or_smaller(digraph.in_degree(name, weight="capacity"), everything - {name})
    best = _smallest_from_rank_0(graph, digraph, best)
    backwards = _smallest_from_rank_0(graph, digraph.reverse(copy=True), _Cut(best.capacity))
    return best.or_smaller(backwards.capacity, everything - backwards.sending)


class _Cut(NamedTuple):
    capacity: float
    sending: frozenset[str] = frozenset()

    def or_smaller(self, capacity: float, sending: Collection[str]) -> _Cut:
        """This cut, unless the other one is smaller by more than rounding."""
        return _Cut(capacity, frozenset(sending)) if capacity < self.capacity * NEARLY else self


def _smallest_from_rank_0(graph: LinkGraph, digraph: nx.DiGraph[str], best: _Cut) -> _Cut:
    """The smallest cut with rank 0 on the sending side, or ``best`` if that is not larger."""
    first = graph.rank_node(0)
    residual = build_residual_network(digraph, "capacity")
    # Nodes to which at least best.capacity flows from rank 0 (Menger: that is transitive).
    reached = {first}
    for rank in range(1, graph.world_size):
        _spread(digraph, reached, best.capacity)
        name = graph.rank_node(rank)
        if name in reached:
            continue
        flow = nx.maximum_flow_value(
            digraph, first, name, flow_func=dinitz, residual=residual, cutoff=best.capacity
        )
        if flow < best.capacity * NEARLY:
            capacity, (sending, _) = nx.minimum_cut(digraph, first, name)
            best = best.or_smaller(capacity, sending)
        reached.add(name)
    return best


def _spread(digraph: nx.DiGraph[str], reached: set[str], capacity: float) -> None:
    """Add to ``reached`` what links of at least ``capacity`` lead to."""
    waiting = list(reached)
    while waiting:
        for name, link in digraph[waiting.pop()].items():
            if name not in reached and link["capacity"] >= capacity:
                reached.add(name)
                waiting.append(name)


def _volume_capacity(graph: LinkGraph) -> float:
    ranks = {graph.rank_node(rank) for rank in range(graph.world_size)}
    egress = sum(link.cost.bandwidth_bytes_per_s for link in graph.links if link.src in ranks)
    ingress = sum(link.cost.bandwidth_bytes_per_s for link in graph.links if link.dst in ranks)
    return min(egress, ingress)
