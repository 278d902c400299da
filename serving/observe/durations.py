"""A histogram of durations in the cells of a worker's row."""

from __future__ import annotations

from bisect import bisect_left
from typing import ClassVar

__all__ = ["BOUNDS_S", "SharedHistogram"]

BOUNDS_S = tuple(0.25e-3 * 2 ** (step / 2) for step in range(43))
"""Upper bounds of histogram buckets: 0.25 ms to 524 s in steps of sqrt(2)."""


class SharedHistogram:
    """Counts of durations in log buckets: the cells of its bounds, one above them, and the sum."""

    __slots__ = ("offset",)
    NUM_CELLS: ClassVar[int] = len(BOUNDS_S) + 2

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def observe(self, cells: memoryview[int], reals: memoryview[float], seconds: float) -> None:
        """Count one duration."""
        offset = self.offset
        cells[offset + bisect_left(BOUNDS_S, seconds)] += 1
        reals[offset + len(BOUNDS_S) + 1] += seconds

    @property
    def sum_offset(self) -> int:
        return self.offset + len(BOUNDS_S) + 1
