"""All messages of a plan, round by round, and the trees that they are.

This is what a plan means: the planner proves and prices it, and the ranks carry it out. A plan's
messages move chunks; those of one chunk are a tree, over which the chunk is reduced into its
owner and broadcast from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from trainmesh.errors import PlanError
from trainmesh.types import Algorithm, Collective, Hop, Plan, Tree

__all__ = ["Chunk", "Message", "Schedule", "dimensions", "schedule", "trees"]

Ring = tuple[int, ...]


class Chunk(NamedTuple):
    """A part of the bytes, and the rank that it is reduced into and broadcast from."""

    share: float
    owner: int


class Message(NamedTuple):
    """In one round, ``src`` sends ``chunk`` to ``dst``, which adds it or stores it."""

    src: int
    dst: int
    chunk: int
    reduce: bool
    via: tuple[str, ...] | None = None


Round = list[Message]


@dataclass(frozen=True)
class Schedule:
    """All messages of a plan."""

    chunks: tuple[Chunk, ...]
    rounds: tuple[Round, ...]


def trees(plan: Plan) -> tuple[Tree, ...]:
    """The trees of a built-in plan, one for each chunk that its messages move.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    if plan.trees:
        return plan.trees
    if plan.algorithm not in tuple(Algorithm):
        raise PlanError(f"the messages of algorithm {plan.algorithm!r} are not known")
    messages = schedule(plan)
    up: list[list[Hop]] = [[] for _ in messages.chunks]
    down: list[list[Hop]] = [[] for _ in messages.chunks]
    for message in (message for together in messages.rounds for message in together):
        hops = up if message.reduce else down
        hops[message.chunk].append(Hop(message.src, message.dst, message.via))
    return tuple(
        Tree(chunk.owner, chunk.share, tuple(up[number]), tuple(down[number]))
        for number, chunk in enumerate(messages.chunks)
        if chunk.share
    )


def schedule(plan: Plan) -> Schedule:
    """The messages of a built-in plan."""
    if plan.algorithm == Algorithm.HIERARCHICAL:
        if len({len(island) for island in plan.islands}) == 1:
            return _nested(plan)
        return _led(plan.islands)
    if plan.algorithm == Algorithm.SHARDED:
        return _sharded(plan.shares)
    if plan.algorithm in (Algorithm.TREE, Algorithm.FOREST):
        return _trees(plan)
    return _rings(plan)


def _rings(plan: Plan) -> Schedule:
    size = plan.world_size
    rings = plan.rings or (plan.order,)
    shares = plan.shares if plan.rings else (1.0,)
    chunks: list[Chunk] = []
    running: list[Iterator[Round]] = []
    for ring, share in zip(rings, shares, strict=True):
        numbers = range(len(chunks), len(chunks) + size)
        # Place i ends a reduce-scatter with chunk i + 1.
        chunks += [Chunk(share / size, ring[place - 1]) for place in range(size)]
        running.append(_phases(plan.collective, [ring], [numbers]))
    return Schedule(tuple(chunks), tuple(_together(running)))


def _phases(
    collective: Collective, rings: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]]
) -> Iterator[Round]:
    """Disjoint rings at once, ring i over the chunks i."""
    for reduce in (True, False):
        skipped = Collective.ALLGATHER if reduce else Collective.REDUCE_SCATTER
        if collective != skipped:
            yield from _together(
                [_ring(ring, own, reduce=reduce) for ring, own in zip(rings, chunks, strict=True)]
            )


def _ring(order: Sequence[int], chunks: Sequence[int], *, reduce: bool) -> Iterator[Round]:
    """Reduce-scatter (place i ends with chunk i + 1) or the all-gather that follows it."""
    size = len(order)
    for step in range(size - 1):
        yield [
            Message(
                rank,
                order[(place + 1) % size],
                chunks[(place - step + (0 if reduce else 1)) % size],
                reduce,
            )
            for place, rank in enumerate(order)
        ]


def _together(running: Iterable[Iterator[Round]]) -> Iterator[Round]:
    """Schedules of disjoint chunks or ranks, running at once."""
    for parts in zip(*running, strict=True):
        yield [message for part in parts for message in part]


def _nested(plan: Plan) -> Schedule:
    """Equal islands at every level: rings over all chunks that a rank holds, then, with those
    that it ends up with, over the next dimension; and back."""
    rings = dimensions(plan.levels or (plan.islands,))
    size = plan.world_size
    held = {rank: tuple(range(size)) for rank in range(size)}
    inwards: list[Round] = []
    outwards: list[list[Round]] = []
    for number, dimension in enumerate(rings):
        parts = len(dimension[0])
        exchanged = bool(plan.shares) and number == 0
        scatter: list[Iterator[Round]] = []
        gather: list[Iterator[Round]] = []
        kept: dict[int, tuple[int, ...]] = {}
        for ring in dimension:
            chunks = held[ring[0]]
            groups = [chunks[part::parts] for part in range(parts)]
            way = _exchanged if exchanged else _by_group
            scatter.append(way(ring, groups, reduce=True))
            gather.append(way(ring, groups, reduce=False))
            ahead = 0 if exchanged else 1
            kept.update((rank, groups[(place + ahead) % parts]) for place, rank in enumerate(ring))
        inwards += _together(scatter)
        outwards.append(list(_together(gather)))
        held = kept
    owner = {chunk: rank for rank, own in held.items() for chunk in own}
    places = len(plan.islands[0])
    weights = [share * places for share in plan.shares] or [1.0] * places
    # Chunk c is of place c modulo the number of places: they are dealt out in turn.
    pieces = tuple(Chunk(weights[c % places] / size, owner[c]) for c in range(size))
    back = [messages for rounds in reversed(outwards) for messages in rounds]
    if plan.collective == Collective.ALLGATHER:
        return Schedule(pieces, tuple(back))
    if plan.collective == Collective.REDUCE_SCATTER:
        return Schedule(pieces, tuple(inwards))
    return Schedule(pieces, (*inwards, *back))


def _by_group(
    ring: Sequence[int], groups: Sequence[Sequence[int]], *, reduce: bool
) -> Iterator[Round]:
    """A ring whose i-th piece is a group of chunks."""
    for messages in _ring(ring, range(len(groups)), reduce=reduce):
        yield [
            message._replace(chunk=chunk) for message in messages for chunk in groups[message.chunk]
        ]


def _exchanged(
    island: Sequence[int], groups: Sequence[Sequence[int]], *, reduce: bool
) -> Iterator[Round]:
    """Everyone sends each rank the group of its place, or each rank sends its group to everyone."""
    pairs = [(a, b, place) for place, b in enumerate(island) for a in island if a != b]
    yield [
        Message(a, b, chunk, reduce) if reduce else Message(b, a, chunk, reduce)
        for a, b, place in pairs
        for chunk in groups[place]
    ]


def _led(islands: Sequence[Sequence[int]]) -> Schedule:
    """Islands of unequal size: along a chain to each island's leader, around the leaders, back."""
    leaders = [island[0] for island in islands]
    chunks = range(len(islands))
    chains = [list(pairwise(reversed(island))) for island in islands]
    to_leader = [
        [Message(a, b, chunk, reduce=True) for chunk in chunks]
        for chain in chains
        for a, b in chain
    ]
    from_leader = [
        [Message(b, a, chunk, reduce=False) for chunk in chunks]
        for chain in chains
        for a, b in reversed(chain)
    ]
    around = [
        messages for reduce in (True, False) for messages in _ring(leaders, chunks, reduce=reduce)
    ]
    pieces = tuple(Chunk(1 / len(islands), leaders[chunk - 1]) for chunk in chunks)
    return Schedule(pieces, (*to_leader, *around, *from_leader))


def _sharded(shares: Sequence[float]) -> Schedule:
    owners = [rank for rank, share in enumerate(shares) if share]
    ways = [(a, b, chunk) for chunk, b in enumerate(owners) for a in range(len(shares)) if a != b]
    return Schedule(
        tuple(Chunk(shares[owner], owner) for owner in owners),
        (
            [Message(a, b, chunk, reduce=True) for a, b, chunk in ways],
            [Message(b, a, chunk, reduce=False) for a, b, chunk in ways],
        ),
    )


def _trees(plan: Plan) -> Schedule:
    rounds: list[Round] = []
    for number, tree in enumerate(plan.trees):
        rounds += [[_message(hop, number, reduce=True)] for hop in tree.up]
        rounds += [[_message(hop, number, reduce=False)] for hop in tree.down]
    return Schedule(tuple(Chunk(tree.share, tree.root) for tree in plan.trees), tuple(rounds))


def _message(hop: Hop, chunk: int, *, reduce: bool) -> Message:
    return Message(hop.src, hop.dst, chunk, reduce, hop.via)


def dimensions(levels: Sequence[Sequence[Sequence[int]]]) -> list[list[Ring]]:
    """The rings of each dimension, the innermost first.

    Args:
        levels: as in ``Plan.levels``; the islands of a level are of equal size.

    Returns:
        ``len(levels) + 1`` lists. Those of the first are the islands; a ring of dimension d joins
        the ranks at one place of all the islands of level d - 1 that make up an island of level d,
        or, in the last dimension, the whole job.
    """
    islands: list[Ring] = [tuple(island) for island in levels[0]]
    found = [islands]
    everyone = [rank for island in islands for rank in island]
    for level in (*levels[1:], [everyone]):
        home = {rank: number for number, block in enumerate(level) for rank in block}
        parts: list[list[Ring]] = [[] for _ in level]
        for island in islands:
            parts[home[island[0]]].append(island)
        found.append([ring for inside in parts for ring in zip(*inside, strict=True)])
        islands = [tuple(rank for part in inside for rank in part) for inside in parts]
    return found
