"""Vivaldi network coordinates: round trips that nobody measured, from those that somebody did.

Dabek, Cox, Kaashoek and Morris, "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM
2004: nodes are masses, measured round trips are springs between them, and each sample moves a node
a part of the way to where its spring is at rest; the part shrinks with the node's confidence. The
height is the paper's model of the access link, which every way from a node crosses. The constants
are those of the paper (c_e = c_c = 0.25), as in Serf.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Coordinate", "Space", "distance_s", "moved"]

DIMENSIONS = 4
ERROR_SHARE = 0.25
"""c_e: how much of a sample's error goes into the error of a coordinate."""
MOVE_SHARE = 0.25
"""c_c: how far one sample may move a coordinate."""
MIN_HEIGHT_S = 10e-6
MAX_ERROR = 1.5
SURE = 0.5
"""An estimate counts if both ends' relative error is at most this."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """``vector`` and ``height_s`` are seconds; ``error``: the relative error to expect."""

    vector: tuple[float, ...] = (0.0,) * DIMENSIONS
    height_s: float = MIN_HEIGHT_S
    error: float = MAX_ERROR


def distance_s(a: Coordinate, b: Coordinate) -> float:
    """The round trip between two coordinates."""
    return math.dist(a.vector, b.vector) + a.height_s + b.height_s


def moved(own: Coordinate, other: Coordinate, rtt_s: float, rng: random.Random) -> Coordinate:
    """``own`` after a round trip of ``rtt_s`` to ``other``. ``rng`` only gives the direction in
    which two nodes at the same place part.

    Raises:
        ValueError: ``rtt_s`` is not positive and finite.
    """
    if not 0 < rtt_s < math.inf:
        raise ValueError(f"rtt_s must be positive and finite, not {rtt_s}")
    expected_s = distance_s(own, other)
    weight = own.error / (own.error + other.error) if own.error + other.error else 0.5
    sample_error = abs(expected_s - rtt_s) / rtt_s
    part = ERROR_SHARE * weight
    error = min(MAX_ERROR, sample_error * part + own.error * (1 - part))
    force_s = MOVE_SHARE * weight * (rtt_s - expected_s)
    direction, apart_s = _away_from(own, other, rng)
    vector = tuple(x + force_s * d for x, d in zip(own.vector, direction, strict=True))
    height_s = own.height_s
    if apart_s > 0:
        height_s += force_s * (own.height_s + other.height_s) / apart_s
    return Coordinate(vector, max(MIN_HEIGHT_S, height_s), error)


def _away_from(
    own: Coordinate, other: Coordinate, rng: random.Random
) -> tuple[tuple[float, ...], float]:
    """The unit vector from ``other`` to ``own``, and how far apart they are."""
    apart = [a - b for a, b in zip(own.vector, other.vector, strict=True)]
    length_s = math.hypot(*apart)
    if length_s > 1e-9:
        return tuple(x / length_s for x in apart), length_s
    chance = [rng.gauss(0.0, 1.0) for _ in apart]
    length = math.hypot(*chance) or 1.0
    return tuple(x / length for x in chance), 0.0


@dataclass
class Space:
    """The coordinates of all nodes that some round trip is known of: routers, endpoints, zones.
    Endpoints take no part in Vivaldi, so a router moves both ends of each sample it has or is
    told of."""

    rng: random.Random
    max_nodes: int = 8_192
    _coordinates: dict[str, Coordinate] = field(default_factory=dict)

    def observe(self, a: str, b: str, rtt_s: float) -> None:
        """A round trip between ``a`` and ``b``; ignored where there is no room for them."""
        new = {a, b} - self._coordinates.keys()
        if a == b or not 0 < rtt_s < math.inf or len(self._coordinates) + len(new) > self.max_nodes:
            return
        at_a, at_b = self._at(a), self._at(b)
        self._coordinates[a] = moved(at_a, at_b, rtt_s, self.rng)
        self._coordinates[b] = moved(at_b, at_a, rtt_s, self.rng)

    def keep(self, names: Iterable[str]) -> None:
        """Forget all nodes but these."""
        kept = set(names)
        self._coordinates = {n: c for n, c in self._coordinates.items() if n in kept}

    def estimate_s(self, a: str, b: str) -> float:
        """The round trip between ``a`` and ``b``; 0 where one of them is not known well yet."""
        if a not in self._coordinates or b not in self._coordinates:
            return 0.0
        at_a, at_b = self._coordinates[a], self._coordinates[b]
        return distance_s(at_a, at_b) if max(at_a.error, at_b.error) <= SURE else 0.0

    def _at(self, name: str) -> Coordinate:
        return self._coordinates.get(name, Coordinate())
