"""The rings of a hierarchical plan: inside the islands, across them, and so on outwards."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["dimensions"]

Ring = tuple[int, ...]


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
