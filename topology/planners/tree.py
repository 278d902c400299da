"""tree: two binary trees over halves of the bytes, or one tree with the least latency.

Double binary trees (Sanders, Speck and Traeff 2009): a rank is inside one of them and a leaf of
the other, so both together load every rank equally. The binomial tree has the least depth, for
small buckets. Trees are laid over the ranks in an order in which near ones are contiguous: their
low edges stay inside a host or a rack.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainmesh.topology.clusters import clustered_ranks
from trainmesh.topology.cost import predict
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.indexed import Indexed
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Algorithm, Collective, Hop, Plan, Tree

__all__ = ["binary_edges", "binomial_edges", "plan", "why_not"]

Edge = tuple[int, int]
"""Places of parent and child."""


def why_not(graph: LinkGraph, request: PlanRequest) -> str | None:
    """Why there is no tree; None if there is."""
    if request.collective != Collective.ALLREDUCE:
        return f"it is for allreduce only, not for {request.collective}"
    if graph.world_size < 2:
        return "one rank has nobody to send to"
    return None


def plan(graph: LinkGraph, request: PlanRequest) -> Plan | None:
    """The faster of the two for an all-reduce of at least two ranks; None else."""
    if why_not(graph, request) is not None:
        return None
    order = clustered_ranks(Indexed.of(graph))
    swapped = order[::-1] if len(order) % 2 == 0 else [*order[1:], order[0]]
    candidates = [
        (_tree(order, binomial_edges(len(order)), 1.0),),
        (
            _tree(order, binary_edges(len(order)), 0.5),
            _tree(swapped, binary_edges(len(order)), 0.5),
        ),
    ]
    plans = [
        Plan(
            algorithm=Algorithm.TREE,
            world_size=graph.world_size,
            order=tuple(range(graph.world_size)),
            trees=trees,
            nbytes=request.nbytes,
            num_chunks=0 if request.executors.pipelined else 1,
        )
        for trees in candidates
    ]
    return min(plans, key=lambda candidate: predict(candidate, graph, request.nbytes))


def binomial_edges(count: int) -> list[Edge]:
    """Places 0..count-1, root 0; the widest edges first. Depth: log2 of ``count``, rounded up."""
    edges: list[Edge] = []
    step = 1 << max(0, count - 1).bit_length()
    while step > 1:
        step //= 2
        edges += [(place, place + step) for place in range(0, count - step, 2 * step)]
    return edges


def binary_edges(count: int) -> list[Edge]:
    """Places 0..count-1, root 0, parents first: even places are inside the tree and odd ones its
    leaves. A place's parent differs in its lowest set bit and the next one, as in NCCL's trees."""
    parent: dict[int, int] = {}
    for place in range(1, count):
        bit = place & -place
        above = (place ^ bit) | (bit << 1)
        parent[place] = above if above < count else place ^ bit
    depth = {0: 0}
    for place in parent:
        way = [place]
        while way[-1] not in depth:
            way.append(parent[way[-1]])
        for below in reversed(way[:-1]):
            depth[below] = depth[parent[below]] + 1
    return [(parent[place], place) for place in sorted(parent, key=lambda p: (depth[p], p))]


def _tree(order: Sequence[int], edges: Sequence[Edge], share: float) -> Tree:
    down = tuple(Hop(order[parent], order[child]) for parent, child in edges)
    up = tuple(Hop(hop.dst, hop.src) for hop in reversed(down))
    return Tree(order[0], share, up, down)
