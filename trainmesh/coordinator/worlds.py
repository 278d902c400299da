"""Which start of a job's processes is the current one, from its ranks' introductions. Pure.

A world is complete when all its ranks have introduced themselves; the complete one that spoke last
is the current one. No clocks are compared: a node's ranks speak through one agent, in order, and
all ranks of a world end together. So a world is over as soon as one of its nodes reports another
one; whatever still arrives from it is late and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from trainmesh.types import Hello

__all__ = ["WorldStart", "Worlds"]

MAX_FORMING = 8
"""How many starts may wait for ranks at the same time; more come only from a job that keeps failing
to start."""
MAX_OVER = 256
"""How many numbers of ended worlds are remembered. A report may be late by seconds, not by many
starts."""
MAX_NODES = 65_536
"""As many as a job may have ranks (``trainmesh.types.MAX_RANKS``)."""

Key = tuple[int, int]
"""Number and size; the number is 0 where ranks agree on none."""


@dataclass
class WorldStart:
    """One start of the processes; ``number`` is that of its ranks' hellos."""

    number: int
    size: int
    hellos: dict[int, Hello] = field(default_factory=dict)
    """By rank, as they came."""

    @property
    def is_complete(self) -> bool:
        return len(self.hellos) == self.size

    def knows(self, hello: Hello) -> bool:
        return self.hellos.get(hello.rank) == hello


class Worlds:
    """The starts of one job. Bounded."""

    def __init__(self) -> None:
        self.current: WorldStart | None = None
        """None while no world is complete."""
        self.newest: WorldStart | None = None
        """The current world; if there is none, the one that was heard from last."""
        self._open: dict[Key, WorldStart] = {}
        self._over: dict[int, None] = {}
        self._spoken_for: dict[str, Key] = {}
        """The world of which each node spoke last."""

    def greet(self, hello: Hello) -> bool:
        """Take an introduction, which ranks repeat with all that they report.

        Returns:
            False if it is late, of a world that is over, or makes no sense.
        """
        if self.is_current(hello):
            return True
        if hello.world in self._over or hello.rank >= hello.world_size:
            return False
        key = _key(hello)
        before = self._spoken_for.get(hello.node)
        if not hello.world and before is not None and self._has_a_number(before, hello):
            return False
        if before is not None and before != key:
            self._end(before)
        self._spoken_for.pop(hello.node, None)
        self._spoken_for[hello.node] = key
        _keep_last(self._spoken_for, MAX_NODES)
        world = self._open.get(key)
        if world is not None and world.hellos.get(hello.rank, hello) != hello:
            self._end(key)  # another process was this rank: that start is over
            self._over.pop(key[0], None)
            world = None
        if world is None:
            world = self._open[key] = WorldStart(*key)
            self._forget_oldest()
        world.hellos[hello.rank] = hello
        if world.is_complete:  # of two that have no node in common, the one that goes on speaking
            self.current = world
        self.newest = self.current or world
        return True

    def is_current(self, hello: Hello) -> bool:
        """Whether ``hello`` is of the current world."""
        return self.current is not None and self.current.knows(hello)

    def _has_a_number(self, key: Key, hello: Hello) -> bool:
        """Whether ``hello`` was sent before its rank knew the number that other ranks of its node
        already report; each rank learns it at a step of its own."""
        world = self._open.get(key)
        if world is None or not world.number or world.size != hello.world_size:
            return False
        known = world.hellos.get(hello.rank)
        return known is None or replace(known, world=0) == hello

    def _end(self, key: Key) -> None:
        world = self._open.pop(key, None)
        if world is not None and world is self.current:
            self.current = None
        if world is self.newest:
            self.newest = None
        if key[0]:
            self._over[key[0]] = None
            _keep_last(self._over, MAX_OVER)

    def _forget_oldest(self) -> None:
        forming = [key for key, world in self._open.items() if world is not self.current]
        for key in forming[:-MAX_FORMING]:
            del self._open[key]


def _key(hello: Hello) -> Key:
    return hello.world, hello.world_size


def _keep_last(kept: dict[str, Key] | dict[int, None], count: int) -> None:
    while len(kept) > count:
        del kept[next(iter(kept))]  # type: ignore[arg-type]
