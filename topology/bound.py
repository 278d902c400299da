"""The least time that any all-reduce needs on a graph.

Two bounds hold for every algorithm; the larger one counts.

- Cut: for a set S of nodes that separates ranks, everything outside needs what S contributes and
  everything inside needs what the others contribute, so M bytes leave S and M bytes enter it:
  ``T >= M / min over S of min(B+(S), B+(V - S))``, by max-flow between one rank and each other
  in both directions (any separating cut separates rank 0 from some rank).
- Volume: each element needs 2 (N - 1) messages that ranks send and ranks receive, as switches
  don't add: ``T >= 2 (N - 1) M / min(sum of egress, sum of ingress)`` (Zhou and Sun 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from trainmesh.topology.graph import LinkGraph

__all__ = ["Bound", "bound"]


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

    Complexity: 2 (N - 1) max-flows.
    """
    if graph.world_size == 1:
        return Bound(0.0, "none")
    capacity, cut = _tightest_cut(graph)
    by_cut_s = nbytes / capacity
    by_volume_s = 2 * (graph.world_size - 1) * nbytes / _volume_capacity(graph)
    if by_volume_s > by_cut_s * (1 + 1e-9):
        return Bound(by_volume_s, "volume")
    links = tuple(link.name for link in graph.links if link.src in cut and link.dst not in cut)
    return Bound(by_cut_s, "cut", tuple(sorted(cut)), links)


def _tightest_cut(graph: LinkGraph) -> tuple[float, frozenset[str]]:
    """Capacity (bytes/s) and sending side of the smallest cut that separates two ranks."""
    digraph = graph.digraph()
    first = graph.rank_node(0)
    best: tuple[float, frozenset[str]] = (float("inf"), frozenset())
    for rank in range(1, graph.world_size):
        other = graph.rank_node(rank)
        for src, dst in ((first, other), (other, first)):
            capacity, (sending, _) = nx.minimum_cut(digraph, src, dst)
            if capacity < best[0] * (1 - 1e-9):
                best = (capacity, frozenset(sending))
    return best


def _volume_capacity(graph: LinkGraph) -> float:
    ranks = {graph.rank_node(rank) for rank in range(graph.world_size)}
    egress = sum(link.cost.bandwidth_bytes_per_s for link in graph.links if link.src in ranks)
    ingress = sum(link.cost.bandwidth_bytes_per_s for link in graph.links if link.dst in ranks)
    return min(egress, ingress)
