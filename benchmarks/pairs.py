"""Two things measured in pairs: how much more one takes, and how sure that is."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Comparison", "compare"]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """The ratio of medians, with its 95 % interval."""

    ratio: float
    low: float
    high: float
    num_pairs: int

    def __str__(self) -> str:
        return (
            f"{self.ratio:.4f} (95 % interval {self.low:.4f} to {self.high:.4f}, "
            f"{self.num_pairs} pairs)"
        )


def compare(pairs: Sequence[tuple[float, float]]) -> Comparison:
    """Median of the second of each pair over the median of the first.

    The interval is the percentile bootstrap's: the ratio of as many pairs, drawn with replacement
    (a pair stays together: what slows the machine down slows both). Seeded.
    """
    draw = random.Random(0)
    ratios = sorted(_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = (ratios[int(share * RESAMPLES)] for share in (0.025, 0.975))
    return Comparison(_ratio(pairs), low, high, len(pairs))


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(second for _, second in pairs) / median(first for first, _ in pairs)
