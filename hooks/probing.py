"""Measure the links between ranks, two by two, while nothing else runs.

In round ``turn`` every rank has one partner (the circle method: N - 1 rounds for even N, N for
odd N), so no link into a rank is shared. First an empty message goes there and back for the
latency, then both send at once. One rank of each node takes part, for all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from time import perf_counter

import torch
import torch.distributed as dist

from trainmesh.types import PairTime

__all__ = ["PairProbes", "partner"]

PINGS = 3
"""The least of a few round trips is the latency; a fourth changes nothing."""
EMPTY_TAG, WARM_TAG, BULK_TAG = 1, 2, 3
WARM_SHARE = 4
"""A message of a quarter of the size goes first, so that TCP has opened its window."""


def partner(place: int, turn: int, count: int) -> int | None:
    """The partner of ``place`` (of ``count``) in a round; None if it sits out."""
    seats = count + count % 2
    if place == seats - 1:
        other = next(i for i in range(seats - 1) if (turn - i) % (seats - 1) == i)
    else:
        other = (turn - place) % (seats - 1)
        if other == place:
            other = seats - 1
    return other if other < count else None


class PairProbes:
    """Those of one rank, which is on ``node``."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._members: list[int] | None = None

    def measure(self, group: dist.ProcessGroup, epoch: int, nbytes: int) -> tuple[PairTime, ...]:
        """This rank's measurements over the gloo ``group``; all its ranks measure together.

        Args:
            group: The same every time.
            epoch: Of the hint that asked for it.
            nbytes: Of each message.

        Raises:
            RuntimeError: a rank is gone, or the group timed out.
        """
        if self._members is None:
            self._members = _one_of_each_node(group, self._node)
        return _measure_pairs(group, self._members, epoch, nbytes)


def _one_of_each_node(group: dist.ProcessGroup, node: str) -> list[int]:
    """The first rank of every node; all ranks, if there is one node only. ``node`` is this rank's.

    Raises:
        RuntimeError: a rank is gone, or the group timed out.
    """
    name = torch.tensor([zlib.crc32(node.encode())], dtype=torch.int64)
    names = [torch.zeros_like(name) for _ in range(group.size())]
    group.allgather([names], [name]).wait()
    first: dict[int, int] = {}
    for rank, other in enumerate(names):
        first.setdefault(int(other), rank)
    return sorted(first.values()) if len(first) > 1 else list(range(group.size()))


def _measure_pairs(
    group: dist.ProcessGroup, members: Sequence[int], epoch: int, nbytes: int
) -> tuple[PairTime, ...]:
    """This rank's measurements from each partner. All ranks of the gloo ``group`` call it; those
    that are not ``members`` only wait with the others.

    Raises:
        RuntimeError: a rank is gone, or the group timed out.
    """
    rank = group.rank()
    place = members.index(rank) if rank in members else None
    measured: list[PairTime] = []
    for turn in range(len(members) - 1 + len(members) % 2 if len(members) > 1 else 0):
        group.barrier().wait()
        other = partner(place, turn, len(members)) if place is not None else None
        if other is not None:
            peer = members[other]
            latency_s, transfer_s = _exchange(group, peer, nbytes, leads=rank < peer)
            measured.append(PairTime(epoch, turn, peer, rank, nbytes, transfer_s, latency_s))
    group.barrier().wait()
    return tuple(measured)


def _exchange(
    group: dist.ProcessGroup, peer: int, nbytes: int, *, leads: bool
) -> tuple[float, float]:
    """Latency and transfer time from ``peer``."""
    latency_s = min(_ping(group, peer, leads=leads) for _ in range(PINGS))
    _both_ways(group, peer, max(1, nbytes // WARM_SHARE), WARM_TAG)
    _ping(group, peer, leads=leads)
    return latency_s, _both_ways(group, peer, nbytes, BULK_TAG)


def _ping(group: dist.ProcessGroup, peer: int, *, leads: bool) -> float:
    """Half a round trip; the leading rank sends first. Both measure it."""
    out, back = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    coming = group.recv([back], peer, EMPTY_TAG)
    begin_s = perf_counter()
    if leads:
        group.send([out], peer, EMPTY_TAG).wait()
        coming.wait()
        elapsed_s = perf_counter() - begin_s
        group.send([out], peer, EMPTY_TAG).wait()
        return elapsed_s / 2
    coming.wait()
    begin_s = perf_counter()
    again = group.recv([back], peer, EMPTY_TAG)
    group.send([out], peer, EMPTY_TAG).wait()
    again.wait()
    return (perf_counter() - begin_s) / 2


def _both_ways(group: dist.ProcessGroup, peer: int, nbytes: int, tag: int) -> float:
    out = torch.zeros(nbytes, dtype=torch.uint8)
    back = torch.empty(nbytes, dtype=torch.uint8)
    coming = group.recv([back], peer, tag)
    begin_s = perf_counter()
    going = group.send([out], peer, tag)
    coming.wait()
    elapsed_s = perf_counter() - begin_s
    going.wait()
    return elapsed_s
