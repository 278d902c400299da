"""The meaning of a plan: its stages, their messages, and the trees that these form.

The planner proves and prices a plan by this, and the ranks carry it out. A plan's messages move
chunks; those of one chunk are a tree, over which the chunk is reduced into its owner and broadcast
from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from trainmesh.plan.kind import PlanKind, kind_of
from trainmesh.plan.stages import Flow, Passes, RingPart, Round, Stage, exchange, hops, rings
from trainmesh.types import Collective, Hop, Plan, Tree

__all__ = ["Chunk", "Schedule", "dimensions", "schedule", "stages", "trees"]

Ring = tuple[int, ...]


class Chunk(NamedTuple):
    """A part of the bytes, and the rank that it is reduced into and broadcast from."""

    share: float
    owner: int


@dataclass(frozen=True)
class Schedule:
    """All messages of a plan."""

    chunks: tuple[Chunk, ...]
    rounds: tuple[Round, ...]


_Way = Callable[[Passes], Stage]
"""A stage that goes one way, or both in turn."""


class _Meaning(NamedTuple):
    """A plan's stages, one after the other, and what its chunks are: asked for only where messages
    are, for a plan for thousands of ranks has millions of these."""

    stages: tuple[Stage, ...]
    chunks: Callable[[], tuple[Chunk, ...]]


def stages(plan: Plan) -> tuple[Stage, ...]:
    """The stages, which run one after the other.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    return _meaning(plan).stages if plan.world_size > 1 else ()


def schedule(plan: Plan) -> Schedule:
    """All messages.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    meaning = _meaning(plan)
    rounds = (messages for stage in meaning.stages for messages in stage.messages())
    return Schedule(meaning.chunks(), tuple(rounds) if plan.world_size > 1 else ())


def trees(plan: Plan) -> tuple[Tree, ...]:
    """One tree for each chunk that the messages move.

    Raises:
        PlanError: the algorithm is a plug-in's, whose messages are not known.
    """
    if plan.trees:
        return plan.trees
    messages = schedule(plan)
    up: list[list[Hop]] = [[] for _ in messages.chunks]
    down: list[list[Hop]] = [[] for _ in messages.chunks]
    for message in (message for together in messages.rounds for message in together):
        way = up if message.reduce else down
        way[message.chunk].append(Hop(message.src, message.dst, message.via))
    return tuple(
        Tree(chunk.owner, chunk.share, tuple(up[number]), tuple(down[number]))
        for number, chunk in enumerate(messages.chunks)
        if chunk.share
    )


def _meaning(plan: Plan) -> _Meaning:
    kind = kind_of(plan)
    if kind == PlanKind.ISLANDS:
        equal = len({len(island) for island in plan.islands}) == 1
        return _nested(plan) if equal else _led(plan.islands)
    if kind == PlanKind.SHARES:
        return _sharded(plan.shares)
    if kind == PlanKind.TREES:
        return _trees(plan.trees)
    return _rings(plan)


def _passes(collective: Collective) -> Passes:
    if collective == Collective.ALLREDUCE:
        return (True, False)
    return (collective == Collective.REDUCE_SCATTER,)


def _rings(plan: Plan) -> _Meaning:
    """All rings in one stage, over chunks of their own."""
    size = plan.world_size
    shares = plan.shares if plan.rings else (1.0,)
    parts = [
        RingPart(ring, share, range(number * size, (number + 1) * size))
        for number, (ring, share) in enumerate(
            zip(plan.rings or (plan.order,), shares, strict=True)
        )
    ]

    def chunks() -> tuple[Chunk, ...]:
        # Place i ends a reduce-scatter with chunk i + 1.
        return tuple(
            Chunk(share / size, ring[place - 1])
            for ring, share, _ in parts
            for place in range(size)
        )

    return _Meaning((rings(parts, _passes(plan.collective)),), chunks)


def _nested(plan: Plan) -> _Meaning:
    """Equal islands at every level: rings over all chunks that a rank holds, then, with those
    that it ends up with, over the next dimension; and back. Where places have unequal shares, the
    ranks of an island exchange them directly."""
    size, places = plan.world_size, len(plan.islands[0])
    inner, *outer = dimensions(plan.levels or (plan.islands,))
    place = {rank: number for island in inner for number, rank in enumerate(island)}
    weights = [share * places for share in plan.shares] or [1.0] * places
    held = {rank: range(size) for rank in place}
    ways: list[_Way] = []
    if plan.shares:
        groups = [
            (island, [range(size)[first::places] for first in range(places)]) for island in inner
        ]
        ways.append(lambda passes: exchange(groups, plan.shares, reduce=passes[0]))
        held = {rank: range(size)[number::places] for rank, number in place.items()}
    for dimension in outer if plan.shares else (inner, *outer):
        parts = [
            RingPart(ring, len(held[ring[0]]) / size * weights[place[ring[0]]], held[ring[0]])
            for ring in dimension
        ]
        ways.append(partial(rings, parts))
        held = {
            rank: chunks[(number + 1) % len(ring) :: len(ring)]
            for ring, _, chunks in parts
            for number, rank in enumerate(ring)
        }
    owners = held

    def chunks() -> tuple[Chunk, ...]:
        owner = {chunk: rank for rank, own in owners.items() for chunk in own}
        # Chunk c is of place c modulo the number of places: they are dealt out in turn.
        return tuple(Chunk(weights[c % places] / size, owner[c]) for c in range(size))

    return _Meaning(_there_and_back(ways, plan.collective), chunks)


def _there_and_back(ways: Sequence[_Way], collective: Collective) -> tuple[Stage, ...]:
    """Inwards, reducing, and outwards again; the innermost does both at once."""
    *inside, across = ways
    if collective == Collective.REDUCE_SCATTER:
        return tuple(way((True,)) for way in ways)
    if collective == Collective.ALLGATHER:
        return tuple(way((False,)) for way in reversed(ways))
    inwards = [way((True,)) for way in inside]
    outwards = [way((False,)) for way in reversed(inside)]
    return (*inwards, across((True, False)), *outwards)


def _led(islands: Sequence[Ring]) -> _Meaning:
    """Islands of unequal size: along a chain to each island's leader, one hop of every island at
    a time; around the leaders; and back."""
    leaders, everything = [island[0] for island in islands], range(len(islands))
    links = [
        [(island[place], island[place + 1]) for island in islands if place + 1 < len(island)]
        for place in range(max(map(len, islands)) - 1)
    ]
    inwards = [
        hops([(Flow(b, a, 1.0), everything) for a, b in pairs], reduce=True)
        for pairs in reversed(links)
    ]
    outwards = [
        hops([(Flow(a, b, 1.0), everything) for a, b in pairs], reduce=False) for pairs in links
    ]
    around = rings([RingPart(leaders, 1.0, everything)], (True, False))

    def chunks() -> tuple[Chunk, ...]:
        return tuple(Chunk(1 / len(islands), leaders[chunk - 1]) for chunk in everything)

    return _Meaning((*inwards, around, *outwards), chunks)


def _sharded(shares: Sequence[float]) -> _Meaning:
    """All ranks send each rank its shard, then each rank sends its shard to all."""
    owners = [rank for rank, share in enumerate(shares) if share]
    own: list[list[int]] = [[] for _ in shares]
    for chunk, owner in enumerate(owners):
        own[owner].append(chunk)
    both = [exchange([(range(len(shares)), own)], shares, reduce=way) for way in (True, False)]
    return _Meaning(tuple(both), lambda: tuple(Chunk(shares[owner], owner) for owner in owners))


def _trees(plan_trees: Sequence[Tree]) -> _Meaning:
    """Hops that can run at once, by their distance from the leaves and then from the root. A
    single tree leaves links idle meanwhile: there a rank's hops are a step each."""
    alone = len(plan_trees) == 1
    found: list[Stage] = []
    for reduce in (True, False):
        steps: dict[int, list[tuple[Flow, Sequence[int]]]] = defaultdict(list)
        for number, tree in enumerate(plan_trees):
            way = tree.up if reduce else tree.down
            for hop, step in zip(way, _steps(way, alone=alone), strict=True):
                flow = Flow(hop.src, hop.dst, tree.share, hop.via)
                steps[step].append((flow, (number,)))
        found += [hops(steps[step], reduce=reduce) for step in sorted(steps)]
    return _Meaning(
        tuple(found), lambda: tuple(Chunk(tree.share, tree.root) for tree in plan_trees)
    )


def _steps(way: Sequence[Hop], *, alone: bool) -> list[int]:
    """The step at which each hop can run: after the last hop that brings the bytes it sends; if
    ``alone``, also after the other hops of its ranks."""
    ready: dict[int, int] = defaultdict(int)
    sent: dict[int, int] = defaultdict(int)
    steps = []
    for hop in way:
        step = max(ready[hop.src], sent[hop.src], ready[hop.dst]) if alone else ready[hop.src]
        sent[hop.src] = step + 1
        ready[hop.dst] = max(ready[hop.dst], step + 1)
        steps.append(step)
    return steps


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
