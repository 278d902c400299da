"""The proof: run a plan on sets of ranks and see that it does what its collective promises.

A chunk's value is the bit set of the ranks that have been added to it. Reducing two sets that
overlap would count a rank twice, an incomplete set at the end would miss one. Messages come in
rounds, all of a round's sends read what the round before left, so a schedule that can be written
down here can't make a rank wait for ever. The idea is that of msccl-tools (Collective.check).
The bytes that the messages put on every link are added up on the way, and must be those that the
prediction reckoned with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from trainmesh.errors import PlanError
from trainmesh.plans import check_shape
from trainmesh.topology.cost import Flow, link_loads
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.levels import dimensions
from trainmesh.types import Algorithm, Collective, Hop, Plan

__all__ = [
    "EXACT_UP_TO",
    "Chunk",
    "Message",
    "Schedule",
    "check_loads",
    "interpret",
    "schedule",
    "validate",
]

EXACT_UP_TO = 64
"""World size up to which a plan is interpreted. Above, its shape is the proof: rings over
permutations, islands that partition the ranks, and trees that reach each rank once are the same
schedules at any size."""
NEARLY = 1e-9


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

    def flows(self) -> list[Flow]:
        """What it sends between each two ranks."""
        total: dict[tuple[int, int, tuple[str, ...] | None], float] = defaultdict(float)
        for messages in self.rounds:
            for message in messages:
                total[message.src, message.dst, message.via] += self.chunks[message.chunk].share
        return [Flow(src, dst, share, via) for (src, dst, via), share in total.items()]


def validate(plan: Plan, world_size: int) -> None:
    """Prove that ``plan`` is its collective over ``world_size`` ranks.

    A plug-in's algorithm is checked for its shape only: its messages are not known here.

    Raises:
        PlanError: it is not; the message says why.
    """
    check_shape(plan, world_size)
    if plan.algorithm in tuple(Algorithm) and 1 < world_size <= EXACT_UP_TO:
        interpret(world_size, schedule(plan), plan.collective)


def check_loads(plan: Plan, graph: LinkGraph, predicted: Mapping[str, float]) -> None:
    """Check that the messages of ``plan`` load every link as ``predicted`` (link name to share of
    the bytes). Nothing is checked above ``EXACT_UP_TO`` ranks, or for a plug-in's algorithm.

    Raises:
        PlanError: they don't; the message names a link.
    """
    if plan.algorithm not in tuple(Algorithm) or not 1 < plan.world_size <= EXACT_UP_TO:
        return
    loads = link_loads(schedule(plan).flows(), graph)
    for name in sorted({*loads, *predicted}):
        sent, reckoned = loads.get(name, 0.0), predicted.get(name, 0.0)
        if abs(sent - reckoned) > NEARLY * max(1.0, reckoned):
            raise PlanError(
                f"{plan.algorithm}: {sent} of the bytes cross {name}, predicted were {reckoned}"
            )


def interpret(
    world_size: int, plan: Schedule, collective: Collective = Collective.ALLREDUCE
) -> None:
    """Run ``plan`` on sets.

    Raises:
        PlanError: a contribution is counted twice, or is missing where it is due.
    """
    everyone = (1 << world_size) - 1
    gathers = collective == Collective.ALLGATHER
    values = [
        [1 << rank if not gathers or chunk.owner == rank else 0 for chunk in plan.chunks]
        for rank in range(world_size)
    ]
    for messages in plan.rounds:
        sent = [(message, values[message.src][message.chunk]) for message in messages]
        for message, value in sent:
            held = values[message.dst][message.chunk]
            if message.reduce and held & value:
                twice = (held & value).bit_length() - 1
                raise PlanError(f"rank {message.dst} would count rank {twice} twice")
            values[message.dst][message.chunk] = held | value if message.reduce else value
    for rank, chunks in enumerate(values):
        for chunk, value in zip(plan.chunks, chunks, strict=True):
            if collective == Collective.REDUCE_SCATTER and chunk.owner != rank:
                continue
            due = 1 << chunk.owner if gathers else everyone
            if value != due:
                missing = (due & ~value).bit_length() - 1
                raise PlanError(f"rank {rank} would end without rank {missing}'s contribution")


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
    """Islands of unequal size: gloo's reduce to the leaders, around them, and its broadcast."""
    count = len(islands)
    cuts = sorted({Fraction(i, n) for n in (count, *map(len, islands)) for i in range(n + 1)})
    chunks = range(len(cuts) - 1)
    shares = [float(end - begin) for begin, end in pairwise(cuts)]

    def parts(number: int) -> list[list[int]]:
        return [[c for c in chunks if int(cuts[c] * number) == part] for part in range(number)]

    rounds: list[Round] = []
    for island in islands:
        own = parts(len(island))
        rounds += _by_group(island, own, reduce=True)
        for place, rank in enumerate(island[1:], 1):
            mine = own[(place + 1) % len(island)]
            rounds.append([Message(rank, island[0], chunk, reduce=False) for chunk in mine])
    leaders = [island[0] for island in islands]
    for reduce in (True, False):
        rounds += _by_group(leaders, parts(count), reduce=reduce)
    for island in islands:
        have = 1
        while have < len(island):
            pairs = [(island[i], island[i + have]) for i in range(min(have, len(island) - have))]
            rounds.append([Message(a, b, c, reduce=False) for a, b in pairs for c in chunks])
            have *= 2
    return Schedule(tuple(Chunk(share, leaders[0]) for share in shares), tuple(rounds))


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
