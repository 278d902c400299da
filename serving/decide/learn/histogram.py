"""TTFTs in logarithmic buckets that forget, for the quantile a hedge waits for."""

from __future__ import annotations

from math import log
from typing import Final

__all__ = ["Histogram", "TtftQuantiles", "size_class"]

LEAST_S: Final = 1e-4
BUCKETS: Final = 128
GROWTH: Final = 1.14
"""Bucket b holds LEAST_S * GROWTH**b and more: 0.1 ms to half an hour in 128."""
KEEP_A_SECOND: Final = 0.93
"""Half-life of ten seconds."""
MIN_COUNT: Final = 20.0
_SCALE: Final = 1.0 / log(GROWTH)


class Histogram:
    """Counts of durations; ``quantile_s`` rounds up to a bucket's end (14 %)."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = [0.0] * BUCKETS
        self.total = 0.0

    def add(self, value_s: float) -> None:
        bucket = int(log(value_s / LEAST_S) * _SCALE) if value_s > LEAST_S else 0
        self._counts[bucket if bucket < BUCKETS else BUCKETS - 1] += 1.0
        self.total += 1.0

    def quantile_s(self, share: float) -> float:
        """The least bucket end with at least ``share`` of all counts below it; 0 if empty."""
        wanted = share * self.total
        for bucket, count in enumerate(self._counts):
            wanted -= count
            if wanted <= 0 and self.total:
                return LEAST_S * GROWTH ** (bucket + 1)
        return 0.0

    def forget(self, keep: float) -> None:
        """Multiplies all counts by ``keep`` in [0, 1)."""
        self._counts = [keep * count for count in self._counts]
        self.total *= keep


def size_class(prompt_tokens: int, stream: bool) -> int:
    """Requests whose TTFTs are alike: kind of answer, and the prompt's size within a factor 4."""
    return (prompt_tokens.bit_length() + 1) // 2 * 2 + stream


class TtftQuantiles:
    """One quantile of TTFT for each size class; of the whole kind where a class is too small."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._histograms: dict[int, Histogram] = {}
        self._delays_s: dict[int, float] = {}
        self._kinds_s = [float("inf"), float("inf")]
        self._forgot_s = float("-inf")

    def add(self, prompt_tokens: int, stream: bool, ttft_s: float) -> None:
        key = size_class(prompt_tokens, stream)
        try:
            histogram = self._histograms[key]
        except KeyError:
            histogram = self._histograms[key] = Histogram()
        histogram.add(ttft_s)

    def get_s(self, prompt_tokens: int, stream: bool) -> float:
        """As of the last ``tick``; infinite where too little is known."""
        delay_s = self._delays_s.get(size_class(prompt_tokens, stream))
        return self._kinds_s[stream] if delay_s is None else delay_s

    def tick(self, now_s: float) -> None:
        """Forgets, and computes the quantiles again; does so once a second, and at once while
        nothing is known."""
        if now_s - self._forgot_s < 1.0 and self._delays_s:
            return
        self._forgot_s = now_s
        self._delays_s.clear()
        for key, histogram in list(self._histograms.items()):
            if histogram.total >= MIN_COUNT:
                self._delays_s[key] = histogram.quantile_s(self._share)
            histogram.forget(KEEP_A_SECOND)
            if histogram.total < 0.01:
                del self._histograms[key]
        for kind in (0, 1):
            known = [delay_s for key, delay_s in self._delays_s.items() if key % 2 == kind]
            self._kinds_s[kind] = max(known, default=float("inf"))
