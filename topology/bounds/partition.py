"""Volume bounds: the bytes that groups of ranks have to exchange.

Take any K disjoint sets of nodes that hold all ranks between them, each at least one. Merging a
set into one rank only makes an all-reduce easier, and K ranks that reduce and broadcast an element
send 2 (K - 1) messages, as switches don't add. So ``T >= 2 (K - 1) M / sum of B+(set)``, and the
same with what enters the sets. With single ranks as sets this is the volume bound of Zhou and Sun
(arXiv 2602.22482); with hosts or racks as sets it is what limits most clusters.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from trainmesh.topology.clusters import Groups
from trainmesh.topology.indexed import Indexed

__all__ = ["Volume", "single_ranks", "volume"]


class Volume(NamedTuple):
    """``capacity``: algbw of an all-reduce is at most this, in the graph's units."""

    capacity: Fraction
    groups: Groups


def volume(graph: Indexed, groups: Groups) -> Volume:
    """The bound of one division; at least two groups."""
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    out = into = 0
    for tail, head, capacity in graph.edges:
        src, dst = group_of.get(tail), group_of.get(head)
        if src != dst:
            out += capacity if src is not None else 0
            into += capacity if dst is not None else 0
    return Volume(Fraction(min(out, into), 2 * (len(groups) - 1)), groups)


def single_ranks(graph: Indexed) -> Groups:
    """Each rank a group of its own, all switches left out."""
    return tuple(frozenset({node}) for node in graph.ranks)
