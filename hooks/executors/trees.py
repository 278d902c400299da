"""Trees over point-to-point messages: how every plan but the backend's own is carried out.

A plan is a set of trees (``trainmesh.plan.schedule.trees``): the part of the bytes that belongs to
a tree is reduced over it into its root and broadcast back. The part is cut into pieces, and each
piece moves on as soon as it can, so all levels, directions and links are busy at once.

This module says what one rank does, without doing it: pure and without torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from trainmesh.types import Tree

__all__ = ["PieceId", "PeerStream", "PieceLayout", "TreeRole", "cut", "hops", "parts"]


@dataclass(frozen=True)
class TreeRole:
    """What this rank does in one tree: it adds what its ``children`` send, sends the sum to its
    ``parent`` (None: it is the root), and passes what its ``source`` (None: the root) sends on to
    its ``targets``."""

    children: tuple[int, ...]
    lags: tuple[int, ...]
    """For each child, how many hops later its messages go on, with those of the others."""
    parent: int | None
    source: int | None
    targets: tuple[int, ...]

    @property
    def num_sends(self) -> int:
        """Messages that leave for each piece."""
        return len(self.targets) + (self.parent is not None)

    def streams(self) -> Iterator[PeerStream]:
        """Where messages come from."""
        for child in self.children:
            yield PeerStream(child, is_up=True)
        if self.source is not None:
            yield PeerStream(self.source, is_up=False)


def parts(trees: Sequence[Tree], rank: int) -> tuple[TreeRole, ...]:
    """The parts of ``rank``, by tree."""
    return tuple(_part(tree, rank) for tree in trees)


def _part(tree: Tree, rank: int) -> TreeRole:
    into = {src: depth for src, dst, depth, is_up in hops(tree) if is_up and dst == rank}
    last = max(into.values(), default=0)
    return TreeRole(
        children=tuple(into),
        lags=tuple(last + 1 - depth for depth in into.values()),
        parent=next((hop.dst for hop in tree.up if hop.src == rank), None),
        source=next((hop.src for hop in tree.down if hop.dst == rank), None),
        targets=tuple(hop.dst for hop in tree.down if hop.src == rank),
    )


class PieceId(NamedTuple):
    """A message: piece ``piece`` of ``tree``, on its way up or down."""

    tree: int
    piece: int
    is_up: bool


class PeerStream(NamedTuple):
    """The messages from one rank in one direction are received by one thread."""

    src: int
    is_up: bool


@dataclass(frozen=True)
class PieceLayout:
    """How a buffer of ``sum(sizes)`` elements is cut: ``sizes`` are those of all pieces, tree by
    tree, and ``first[tree]`` is the number of a tree's first piece. Pieces are never empty.
    ``expected``: the messages of each peer stream in the order in which they probably arrive.
    ``turns``: the order in which the children's messages are added, for each piece.

    Both orders are those of one order of all messages of the plan, in which each comes after those
    that it needs. So of all messages that have not been received, the first in it can be: its
    sender has all it needs, and its receiver waits for nothing that comes later. So no rank waits
    for ever, although a stream takes messages only in its order and holds only a few, and although
    it may wait until the pieces before the last few (and no fewer than the lag) have been sent on.
    """

    sizes: tuple[int, ...]
    first: tuple[int, ...]
    expected: dict[PeerStream, tuple[PieceId, ...]]
    turns: dict[PieceId, tuple[int, ...]]

    @classmethod
    def of(cls, trees: Sequence[Tree], rank: int, numel: int, piece_numel: int) -> PieceLayout:
        """Cut ``numel`` elements into pieces of about ``piece_numel``, the same on every rank."""
        sizes, first = cut(trees, numel, piece_numel)
        arrivals = _arrivals(trees, rank, first)
        expected: dict[PeerStream, list[PieceId]] = defaultdict(list)
        turns: dict[PieceId, list[int]] = defaultdict(list)
        for src, item in arrivals:
            expected[PeerStream(src, item.is_up)].append(item)
            if item.is_up:
                turns[item].append(src)
        return cls(
            tuple(sizes),
            tuple(first),
            {stream: tuple(items) for stream, items in expected.items()},
            {item: tuple(children) for item, children in turns.items()},
        )

    def number(self, item: PieceId) -> int:
        """Which piece of the buffer it is."""
        return self.first[item.tree] + item.piece

    def num_events(self, own: Sequence[TreeRole]) -> int:
        """How many pieces are completed and messages sent on the rank of these parts."""
        counts = (b - a for a, b in pairwise(self.first))
        return sum(n * (1 + part.num_sends) for n, part in zip(counts, own, strict=True))

    def by_piece(self, *, is_up: bool) -> Iterator[PieceId]:
        """All pieces, the trees in turn."""
        counts = [b - a for a, b in pairwise(self.first)]
        for piece in range(max(counts, default=0)):
            for tree, count in enumerate(counts):
                if piece < count:
                    yield PieceId(tree, piece, is_up)


def cut(trees: Sequence[Tree], numel: int, piece_numel: int) -> tuple[list[int], list[int]]:
    """``sizes`` and ``first`` of a Layout."""
    ends, total = [0], 0.0
    for tree in trees[:-1]:
        total += tree.share
        ends.append(min(numel, round(total * numel)))
    ends.append(numel)
    sizes: list[int] = []
    first = [0]
    for begin, end in pairwise(ends):
        count = -(-(end - begin) // piece_numel)
        cuts = [begin + (end - begin) * i // count for i in range(count)] if count else []
        sizes += [b - a for a, b in pairwise([*cuts, end])]
        first.append(len(sizes))
    return sizes, first


def hops(tree: Tree) -> Iterator[tuple[int, int, int, bool]]:
    """From, to, how many hops come before it, and whether it is on the way up; each after those
    that it waits for, in an order that all ranks share."""
    ready: dict[int, int] = defaultdict(int)
    for hop in tree.up:
        yield hop.src, hop.dst, ready[hop.src], True
        ready[hop.dst] = max(ready[hop.dst], ready[hop.src] + 1)
    there = {tree.root: ready[tree.root]}
    for hop in tree.down:
        yield hop.src, hop.dst, there[hop.src], False
        there[hop.dst] = there[hop.src] + 1


def _arrivals(trees: Sequence[Tree], rank: int, first: Sequence[int]) -> list[tuple[int, PieceId]]:
    """What reaches ``rank``, with its senders, in the order in which all trees progress alike: of
    each the same part has gone by at any time, a hop later by one piece of the largest."""
    counts = [b - a for a, b in pairwise(first)]
    hop_time = 1 / max(*counts, 1)
    found: list[tuple[float, int, int, int, int, bool]] = []
    for number, (tree, count) in enumerate(zip(trees, counts, strict=True)):
        for place, (src, dst, depth, is_up) in enumerate(hops(tree)):
            if dst == rank:
                found += [
                    (piece / count + depth * hop_time, number, place, piece, src, is_up)
                    for piece in range(count)
                ]
    return [
        (src, PieceId(number, piece, is_up)) for _, number, _, piece, src, is_up in sorted(found)
    ]
