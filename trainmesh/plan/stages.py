"""Stages: the parts of a plan that run one after the other, as flows and as messages.

A stage is made once, of rings, of exchanges or of hops, and is seen in two ways: in ``flows``, one
for each pair of ranks, however many messages there are between them, so that plans for thousands
of ranks can be priced; and in ``messages``, round by round, to be proven and carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Flow", "Message", "Passes", "RingPart", "Round", "Stage", "exchange", "hops", "rings"]


class Flow(NamedTuple):
    """``share`` of the bytes goes from rank ``src`` to rank ``dst`` (over ``via`` if it is set)."""

    src: int
    dst: int
    share: float
    via: tuple[str, ...] | None = None


class Message(NamedTuple):
    """In one round, ``src`` sends ``chunk`` to ``dst``, which adds it or stores it."""

    src: int
    dst: int
    chunk: int
    reduce: bool
    via: tuple[str, ...] | None = None


Round = list[Message]
Passes = tuple[bool, ...]
"""A stage's passes in turn: True reduces, False hands on."""


@dataclass(frozen=True)
class Stage:
    """Flows that run at once, in ``rounds`` messages each."""

    rounds: int
    flows: tuple[Flow, ...]
    messages: Callable[[], Iterator[Round]] = field(compare=False, repr=False)
    """The same bytes, message by message."""


class RingPart(NamedTuple):
    """One ring of a stage: ``share`` of the bytes, which are ``chunks``, around ``order``. A
    reduction leaves place i with the chunks i + 1, i + 1 + len(order), ..."""

    order: Sequence[int]
    share: float
    chunks: range


def rings(parts: Sequence[RingPart], passes: Passes) -> Stage:
    """Rings over disjoint ranks or chunks at once: a reduce-scatter, an all-gather, or both."""
    flows: list[Flow] = []
    rounds = 0
    for order, share, _ in parts:
        size = len(order)
        if size > 1:
            rounds = max(rounds, len(passes) * (size - 1))
            per_hop = len(passes) * (size - 1) / size * share
            flows += [Flow(src, order[(i + 1) % size], per_hop) for i, src in enumerate(order)]

    def messages() -> Iterator[Round]:
        for reduce in passes:
            yield from _together([_around(part, reduce=reduce) for part in parts])

    return Stage(rounds, tuple(flows), messages)


def _around(part: RingPart, *, reduce: bool) -> Iterator[Round]:
    """Reduce-scatter (place i ends with group i + 1) or the all-gather that follows it."""
    order, size = part.order, len(part.order)
    groups = [part.chunks[first::size] for first in range(size)]
    for step in range(size - 1):
        yield [
            Message(rank, order[(place + 1) % size], chunk, reduce)
            for place, rank in enumerate(order)
            for chunk in groups[(place - step + (0 if reduce else 1)) % size]
        ]


def exchange(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    shares: Sequence[float],
    *,
    reduce: bool,
) -> Stage:
    """In each group everyone sends each member what is of its place, or each member sends that to
    everyone. The messages of a rank leave one after the other.

    Args:
        groups: Of each the members, and the chunks of each place.
        shares: Of the bytes, by place.
    """
    flows = tuple(
        Flow(a, b, share) if reduce else Flow(b, a, share)
        for members, _ in groups
        for a in members
        for b, share in zip(members, shares, strict=True)
        if a != b and share
    )

    def messages() -> Iterator[Round]:
        yield [
            Message(a, b, chunk, reduce) if reduce else Message(b, a, chunk, reduce)
            for members, chunks in groups
            for b, own in zip(members, chunks, strict=True)
            for a in members
            if a != b
            for chunk in own
        ]

    return Stage(len(shares) - 1, flows, messages)


def hops(sent: Sequence[tuple[Flow, Iterable[int]]], *, reduce: bool) -> Stage:
    """Messages between any ranks at once, each with the chunks that it brings. As many rounds as
    the busiest rank sends or receives messages: these leave, or arrive, one after the other."""
    flows = tuple(flow for flow, _ in sent)
    leaving, arriving = Counter(flow.src for flow in flows), Counter(flow.dst for flow in flows)

    def messages() -> Iterator[Round]:
        yield [
            Message(flow.src, flow.dst, chunk, reduce, flow.via)
            for flow, chunks in sent
            for chunk in chunks
        ]

    return Stage(max(*leaving.values(), *arriving.values()), flows, messages)


def _together(running: Iterable[Iterator[Round]]) -> Iterator[Round]:
    """Schedules of disjoint chunks or ranks, running at once."""
    for parts in zip(*running, strict=True):
        yield [message for part in parts for message in part]
