"""Trees that carry a collective over a graph whose switches only forward, and their proof.

A hop between ranks takes one way whose inner nodes are switches. The weight of a tree is the
bandwidth that it takes of every link of every hop, in the unit of the capacities.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from trainmesh.errors import PlanError
from trainmesh.types import Hop

__all__ = ["Arc", "Number", "OutTree", "Pair", "check", "loads", "reversed_hops"]

Arc = tuple[str, str]
"""A directed link: the names of its ends."""
Number = Fraction | float
"""A bandwidth. Integers are welcome wherever a Fraction is."""


@dataclass(frozen=True)
class OutTree:
    """Broadcast from ``root``: every hop starts at the root or where an earlier hop ends."""

    root: int
    weight: Number
    hops: tuple[Hop, ...]


@dataclass(frozen=True)
class Pair:
    """Reduction into ``root`` over ``up`` (a hop comes after all hops into its start), then
    broadcast from it over ``down``; ``weight`` on the links of either."""

    root: int
    weight: Number
    up: tuple[Hop, ...]
    down: tuple[Hop, ...]


def reversed_hops(hops: Sequence[Hop]) -> tuple[Hop, ...]:
    """A broadcast's hops as those of a reduction on the reversed graph, and the other way
    round."""
    return tuple(Hop(hop.dst, hop.src, hop.via and hop.via[::-1]) for hop in reversed(hops))


def loads(ranks: Sequence[str], trees: Iterable[OutTree | Pair]) -> dict[Arc, Number]:
    """The bandwidth that the trees take of each link; links without load are left out."""
    total: dict[Arc, Number] = defaultdict(Fraction)
    for tree in trees:
        for hop in _hops(tree):
            nodes = (ranks[hop.src], *_between(hop), ranks[hop.dst])
            for arc in zip(nodes, nodes[1:], strict=False):
                total[arc] += tree.weight
    return dict(total)


def check(
    ranks: Sequence[str],
    capacities: Mapping[Arc, Number],
    trees: Iterable[OutTree | Pair],
) -> None:
    """Prove that each tree reaches every rank exactly once, in an order that can be carried out,
    over links and switches that exist, and that no link is overloaded (exactly, where weights
    and capacities are Fractions).

    Raises:
        PlanError: with the tree or link at fault.
    """
    trees = tuple(trees)
    for number, tree in enumerate(trees):
        where = f"tree {number} (root {tree.root})"
        if not tree.weight > 0:
            raise PlanError(f"{where}: weight {tree.weight} must be above 0")
        if isinstance(tree, Pair):
            _check_spans(where, tree.root, reversed_hops(tree.up), len(ranks))
            _check_spans(where, tree.root, tree.down, len(ranks))
        else:
            _check_spans(where, tree.root, tree.hops, len(ranks))
        for hop in _hops(tree):
            _check_way(where, hop, ranks, capacities)
    for arc, load in loads(ranks, trees).items():
        if load > capacities[arc]:
            raise PlanError(
                f"link {arc[0]}->{arc[1]}: load {load} above capacity {capacities[arc]}"
            )


def _hops(tree: OutTree | Pair) -> tuple[Hop, ...]:
    return tree.up + tree.down if isinstance(tree, Pair) else tree.hops


def _between(hop: Hop) -> tuple[str, ...]:
    """The nodes that it goes through; none where it names none, as no network chooses here."""
    return hop.via or ()


def _check_spans(where: str, root: int, hops: Sequence[Hop], count: int) -> None:
    reached = {root}
    for hop in hops:
        if hop.src not in reached:
            raise PlanError(f"{where}: hop {hop.src}->{hop.dst} sends what has not come yet")
        if hop.dst in reached:
            raise PlanError(f"{where}: rank {hop.dst} is reached twice")
        reached.add(hop.dst)
    if reached != set(range(count)):
        raise PlanError(f"{where}: ranks {sorted(reached)} are not 0..{count - 1}")


def _check_way(
    where: str, hop: Hop, ranks: Sequence[str], capacities: Mapping[Arc, Number]
) -> None:
    between = _between(hop)
    through = set(between).intersection(ranks)
    if through:
        raise PlanError(f"{where}: hop {hop.src}->{hop.dst} goes through rank {min(through)}")
    if len(set(between)) != len(between):
        raise PlanError(f"{where}: hop {hop.src}->{hop.dst} goes through a switch twice")
    nodes = (ranks[hop.src], *between, ranks[hop.dst])
    for src, dst in zip(nodes, nodes[1:], strict=False):
        if (src, dst) not in capacities:
            raise PlanError(f"{where}: hop {hop.src}->{hop.dst} needs link {src}->{dst}")
