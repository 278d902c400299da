"""How many bytes to hold back so that buckets are reduced together. Pure.

Each collective costs a fixed overhead ``a`` beside ``beta`` seconds per byte. Fusing saves
overheads and delays what is held back. With M bytes in all, ready evenly over the time T_b of the
backward pass, and reduced s at a time, a step that is limited by communication takes ``(s/M) T_b +
(M/s) a + M beta``, least for ``s = M sqrt(a / T_b)``; one that is limited by computation needs the
least s for which ``(M/s) a + M beta <= T_b``. A simulation of the step with the measured arrival
times decides which of the two holds, and whether either is better than the size in force.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from trainmesh.coordinator.measure import MeasuredStep, means
from trainmesh.coordinator.tuning.comm_config import grouped
from trainmesh.topology.measure.fit import fit_line
from trainmesh.units import duration, size

__all__ = ["Overhead", "fusion_size", "overhead", "waiting_s"]

MOST = 2 / 3


@dataclass(frozen=True)
class Overhead:
    """A collective of n bytes takes ``seconds + n * s_per_byte``."""

    seconds: float
    s_per_byte: float

    def time_s(self, nbytes: float) -> float:
        return self.seconds + nbytes * self.s_per_byte

    def refitted(self, samples: Sequence[tuple[int, float]]) -> Overhead:
        """The same overhead with the seconds per byte of ``samples``; both in proportion where
        they take less than the overhead."""
        s_per_byte = median((seconds - self.seconds) / nbytes for nbytes, seconds in samples)
        if s_per_byte > 0:
            return Overhead(self.seconds, s_per_byte)
        factor = median(seconds / self.time_s(nbytes) for nbytes, seconds in samples)
        return Overhead(self.seconds * factor, self.s_per_byte * factor)


def overhead(
    steps: Sequence[MeasuredStep], known: Overhead | None, s_per_byte: float
) -> Overhead | None:
    """From collectives of different sizes, by regression.

    ``known`` was found under the same plan, when sizes differed more: fused ones are nearly alike,
    so if it is given, only its seconds per byte are refitted. If no line can be fitted, because
    there is only one size or the times do not depend on the bytes, ``s_per_byte`` is assumed and
    the remainder is overhead; but only if that remainder is most of the time, because it may be an
    error of the assumption.

    Returns:
        None if the samples don't tell.
    """
    samples = [sample for step in steps for sample in means(step.services) if sample[1] > 0]
    if not samples:
        return None
    if known is not None:
        return known.refitted(samples)
    line = fit_line(samples)
    if line is not None:
        return Overhead(line.intercept_s, line.slope_s_per_byte)
    share = median(1 - nbytes * s_per_byte / seconds for nbytes, seconds in samples)
    rest_s = median(seconds - nbytes * s_per_byte for nbytes, seconds in samples)
    return Overhead(rest_s, s_per_byte) if share > MOST else None


def waiting_s(
    sizes: Sequence[int], arrivals_s: Sequence[float], fusion_bytes: int, cost: Overhead
) -> float:
    """How long the step goes on communicating after the last bucket's arrival."""
    free_s = 0.0
    for group in grouped(sizes, fusion_bytes):
        begin_s = max(free_s, arrivals_s[group[-1]])
        free_s = begin_s + cost.time_s(sum(sizes[place] for place in group))
    return free_s - max(arrivals_s)


def fusion_size(
    steps: Sequence[MeasuredStep], current: int, cost: Overhead, margin: float
) -> tuple[int, str]:
    """The bytes to hold back, 0 for none; ``current`` unless another size is predicted to shorten
    the step by more than ``margin`` of it. And the reason."""
    sizes = steps[-1].sizes
    alike = [step for step in steps if step.sizes == sizes]
    arrivals_s = [median(times) for times in zip(*(step.arrivals_s for step in alike), strict=True)]
    step_s = median(step.step_time_s for step in alike)
    candidates = [0, *_candidates(sizes, arrivals_s, cost)]
    waits_s = {n: waiting_s(sizes, arrivals_s, n, cost) for n in (current, *candidates)}
    best = min(candidates, key=lambda n: (waits_s[n], n))
    gain_s = waits_s[current] - waits_s[best]
    if gain_s <= margin * step_s:
        return current, f"another size of fusion would gain {duration(max(0.0, gain_s))} at most"
    what = f"reduce {size(best)} at a time" if best else "reduce each bucket by itself"
    return best, (
        f"{what}: a collective costs {duration(cost.seconds)} beside its bytes; predicted to save "
        f"{duration(gain_s)} of {duration(step_s)}"
    )


def _candidates(sizes: Sequence[int], arrivals_s: Sequence[float], cost: Overhead) -> list[int]:
    """The sizes worth simulating: those of both formulas, if they would fuse at least two
    buckets."""
    total = sum(sizes)
    count = len(sizes)
    if count < 2:
        return []
    backward_s = (max(arrivals_s) - arrivals_s[0]) * count / (count - 1)
    found = []
    if backward_s > 0:
        found.append(total * math.sqrt(cost.seconds / backward_s))
    if backward_s > total * cost.s_per_byte:
        found.append(total * cost.seconds / (backward_s - total * cost.s_per_byte))
    else:
        found.append(float(total))
    whole = [math.ceil(min(total, nbytes)) for nbytes in found]
    return [n for n in whole if n and sum(other < n for other in sizes) >= 2]
