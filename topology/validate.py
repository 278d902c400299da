"""The proof: run a plan on sets of ranks and see that every rank ends with every contribution
exactly once.

A chunk's value is a bit set of the ranks that have been added to it. Reducing two sets that
overlap would count a rank twice, an incomplete set at the end would miss one. Messages come in
rounds, all of a round's sends read what the round before left, so a schedule that can be written
down here can't make a rank wait for ever. The idea is that of msccl-tools (Collective.check).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainmesh.errors import PlanError
from trainmesh.plans import check_shape
from trainmesh.types import Algorithm, Plan

__all__ = ["EXACT_UP_TO", "Message", "interpret", "schedule", "validate"]

EXACT_UP_TO = 64
"""World size up to which a plan is interpreted. Above, its shape is the proof: a ring over a
permutation, and islands that partition the ranks, are the same schedule at any size."""


@dataclass(frozen=True)
class Message:
    """In one round, ``src`` sends ``chunk`` to ``dst``, which adds it or stores it."""

    src: int
    dst: int
    chunk: int
    reduce: bool


Round = list[Message]


def validate(plan: Plan, world_size: int) -> None:
    """Prove that ``plan`` is an all-reduce over ``world_size`` ranks.

    A plug-in's algorithm is checked for its shape only: its messages are not known here.

    Raises:
        PlanError: it is not; the message says why.
    """
    check_shape(plan, world_size)
    if plan.algorithm in tuple(Algorithm) and 1 < world_size <= EXACT_UP_TO:
        num_chunks, rounds = schedule(plan)
        interpret(world_size, num_chunks, rounds)


def interpret(world_size: int, num_chunks: int, rounds: Iterator[Round]) -> None:
    """Run ``rounds`` on sets.

    Raises:
        PlanError: a contribution is counted twice or missing at the end.
    """
    values = [[1 << rank] * num_chunks for rank in range(world_size)]
    for messages in rounds:
        sent = [(message, values[message.src][message.chunk]) for message in messages]
        for message, value in sent:
            held = values[message.dst][message.chunk]
            if message.reduce and held & value:
                twice = (held & value).bit_length() - 1
                raise PlanError(f"rank {message.dst} would count rank {twice} twice")
            values[message.dst][message.chunk] = held | value if message.reduce else value
    everyone = (1 << world_size) - 1
    for rank, chunks in enumerate(values):
        for value in chunks:
            if value != everyone:
                missing = (everyone & ~value).bit_length() - 1
                raise PlanError(f"rank {rank} would end without rank {missing}'s contribution")


def schedule(plan: Plan) -> tuple[int, Iterator[Round]]:
    """The number of chunks and the rounds of a built-in plan."""
    if plan.algorithm != Algorithm.HIERARCHICAL:
        size = plan.world_size
        return size, _ring_all_reduce(plan.order, list(range(size)))
    sizes = {len(island) for island in plan.islands}
    if len(sizes) == 1:
        return _scattered(plan.islands)
    return len(plan.islands), _led(plan.islands)


def _ring_all_reduce(order: Sequence[int], chunks: Sequence[int]) -> Iterator[Round]:
    yield from _ring(order, chunks, reduce=True)
    yield from _ring(order, chunks, reduce=False)


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


def _together(rounds: Sequence[Iterator[Round]]) -> Iterator[Round]:
    """Schedules of disjoint ranks, running at once."""
    for parts in zip(*rounds, strict=True):
        yield [message for part in parts for message in part]


def _scattered(islands: Sequence[Sequence[int]]) -> tuple[int, Iterator[Round]]:
    """Equal islands of p ranks, q of them: chunk (i, j) is part j of shard i."""
    size, count = len(islands[0]), len(islands)
    shards = [[shard * count + part for part in range(count)] for shard in range(size)]

    def inside(*, reduce: bool) -> Iterator[Round]:
        for part in range(count):
            chunks = [shard[part] for shard in shards]
            yield from _together([_ring(island, chunks, reduce=reduce) for island in islands])

    def rounds() -> Iterator[Round]:
        yield from inside(reduce=True)
        yield from _together(
            [
                # After the reduce-scatter, place i of an island holds shard i + 1.
                _ring_all_reduce([island[place] for island in islands], shards[(place + 1) % size])
                for place in range(size)
            ]
        )
        yield from inside(reduce=False)

    return size * count, rounds()


def _led(islands: Sequence[Sequence[int]]) -> Iterator[Round]:
    """Islands of unequal size: to the leaders, around the leaders, and back."""
    chunks = list(range(len(islands)))
    members = [(rank, island[0]) for island in islands for rank in island[1:]]
    for rank, leader in members:
        yield [Message(rank, leader, chunk, reduce=True) for chunk in chunks]
    yield from _ring_all_reduce([island[0] for island in islands], chunks)
    for rank, leader in members:
        yield [Message(leader, rank, chunk, reduce=False) for chunk in chunks]
