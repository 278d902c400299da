"""Trees over point-to-point messages: how every plan but the backend's own is carried out.

A plan is a set of trees (``trainmesh.schedule.trees``): the part of the bytes that belongs to a
tree is reduced over it into its root and broadcast back. The part is cut into pieces, and each
piece moves on as soon as it can, so all levels, directions and links are busy at once.

This module says what one rank does, without doing it: pure and without torch.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from trainmesh.types import Tree

__all__ = ["Item", "Lane", "Layout", "Part", "cut", "parts"]


@dataclass(frozen=True)
class Part:
    """What this rank does in one tree: it adds what its ``children`` send, sends the sum to its
    ``parent`` (None: it is the root), and passes what its ``source`` (None: the root) sends on to
    its ``targets``."""

    children: tuple[int, ...]
    parent: int | None
    source: int | None
    targets: tuple[int, ...]

    @property
    def num_sends(self) -> int:
        """Messages that leave for each piece."""
        return len(self.targets) + (self.parent is not None)

    def lanes(self) -> Iterator[Lane]:
        """Where messages come from."""
        for child in self.children:
            yield Lane(child, is_up=True)
        if self.source is not None:
            yield Lane(self.source, is_up=False)


def parts(trees: Sequence[Tree], rank: int) -> tuple[Part, ...]:
    """The parts of ``rank``, by tree."""
    return tuple(
        Part(
            children=tuple(hop.src for hop in tree.up if hop.dst == rank),
            parent=next((hop.dst for hop in tree.up if hop.src == rank), None),
            source=next((hop.src for hop in tree.down if hop.dst == rank), None),
            targets=tuple(hop.dst for hop in tree.down if hop.src == rank),
        )
        for tree in trees
    )


class Item(NamedTuple):
    """A message: piece ``piece`` of ``tree``, on its way up or down."""

    tree: int
    piece: int
    is_up: bool


class Lane(NamedTuple):
    """The messages from one rank in one direction are received by one thread."""

    src: int
    is_up: bool


@dataclass(frozen=True)
class Layout:
    """How a buffer of ``sum(sizes)`` elements is cut: ``sizes`` are those of all pieces, tree by
    tree, and ``first[tree]`` is the number of a tree's first piece. Pieces are never empty.
    ``expected``: the messages of each lane in the order in which they probably arrive.
    ``turns``: the order in which the children's messages are added, for each piece.

    Both orders are those of one imagined run of the whole plan, the same on every rank. So of all
    messages that have not been received, the first in that run can be: its sender has all it
    needs, and its receiver waits for nothing that comes later. No rank waits for ever, although
    a lane takes messages only in its order and holds a few only.
    """

    sizes: tuple[int, ...]
    first: tuple[int, ...]
    expected: dict[Lane, tuple[Item, ...]]
    turns: dict[Item, tuple[int, ...]]

    @classmethod
    def of(cls, trees: Sequence[Tree], rank: int, numel: int, piece_numel: int) -> Layout:
        """Cut ``numel`` elements into pieces of about ``piece_numel``, the same on every rank."""
        sizes, first = cut(trees, numel, piece_numel)
        arrivals = _arrivals(trees, rank, sizes, first)
        expected: dict[Lane, list[Item]] = defaultdict(list)
        turns: dict[Item, list[int]] = defaultdict(list)
        for src, item in arrivals:
            expected[Lane(src, item.is_up)].append(item)
            if item.is_up:
                turns[item].append(src)
        return cls(
            tuple(sizes),
            tuple(first),
            {lane: tuple(items) for lane, items in expected.items()},
            {item: tuple(children) for item, children in turns.items()},
        )

    def number(self, item: Item) -> int:
        """Which piece of the buffer it is."""
        return self.first[item.tree] + item.piece

    def num_events(self, own: Sequence[Part]) -> int:
        """How many pieces are completed and messages sent on the rank of these parts."""
        counts = (b - a for a, b in pairwise(self.first))
        return sum(n * (1 + part.num_sends) for n, part in zip(counts, own, strict=True))

    def by_piece(self, *, is_up: bool) -> Iterator[Item]:
        """All pieces, the trees in turn."""
        counts = [b - a for a, b in pairwise(self.first)]
        for piece in range(max(counts, default=0)):
            for tree, count in enumerate(counts):
                if piece < count:
                    yield Item(tree, piece, is_up)


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


@dataclass(frozen=True)
class _Link:
    """A hop of a tree; ``needs`` counts the hops whose messages it waits for."""

    tree: int
    src: int
    dst: int
    is_up: bool
    needs: int
    followers: tuple[int, ...]


def _links(trees: Sequence[Tree]) -> list[_Link]:
    found: list[_Link] = []
    for number, tree in enumerate(trees):
        base = len(found)
        hops = [(hop, True) for hop in tree.up] + [(hop, False) for hop in tree.down]
        into: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for place, (hop, is_up) in enumerate(hops):
            into[hop.dst, is_up].append(base + place)
        needs = [into[hop.src, is_up or hop.src == tree.root] for hop, is_up in hops]
        followers: dict[int, list[int]] = defaultdict(list)
        for place, needed in enumerate(needs):
            for link in needed:
                followers[link].append(base + place)
        found += [
            _Link(number, hop.src, hop.dst, is_up, len(needed), tuple(followers[base + place]))
            for place, ((hop, is_up), needed) in enumerate(zip(hops, needs, strict=True))
        ]
    return found


def _arrivals(
    trees: Sequence[Tree], rank: int, sizes: Sequence[int], first: Sequence[int]
) -> list[tuple[int, Item]]:
    """Play all messages through, in the order in which they can leave; a rank sends one at a time
    and receives one at a time. What reaches ``rank``, with its senders, in order."""
    links = _links(trees)
    waiting = {
        (number, piece): link.needs
        for number, link in enumerate(links)
        for piece in range(first[link.tree + 1] - first[link.tree])
    }
    ready = [(0, key[1], key[0]) for key, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    free_out: dict[int, int] = defaultdict(int)
    free_in: dict[int, int] = defaultdict(int)
    found: list[tuple[int, int, Item]] = []
    while ready:
        time, piece, number = heapq.heappop(ready)
        link = links[number]
        end = max(time, free_out[link.src], free_in[link.dst]) + sizes[first[link.tree] + piece]
        free_out[link.src] = free_in[link.dst] = end
        if link.dst == rank:
            found.append((end, link.src, Item(link.tree, piece, link.is_up)))
        for follower in link.followers:
            waiting[follower, piece] -= 1
            if not waiting[follower, piece]:
                heapq.heappush(ready, (end, piece, follower))
    return [(src, item) for _, src, item in sorted(found)]
