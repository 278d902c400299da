"""What requests of a pool were like lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.types import Context

__all__ = ["TrafficStats"]

PART: Final = 0.02
"""What a new request counts in the means."""
RIF_QUANTILE: Final = 0.84
RIF_TICKS: Final = 16


class TrafficStats:
    """Decayed means, and the requests in flight that Prequal's rule goes by."""

    __slots__ = ("_rifs", "output_tokens", "tokens", "ttft_s")

    def __init__(self) -> None:
        self.ttft_s = 0.05
        self.tokens = 256.0
        """Of a request, prompt and answer."""
        self.output_tokens = 128.0
        self._rifs: deque[float] = deque()

    def asked(self, tokens: int) -> None:
        self.tokens += PART * (tokens - self.tokens)

    def first_byte(self, ttft_s: float) -> None:
        self.ttft_s += PART * (ttft_s - self.ttft_s)

    def ended(self, output_tokens: int) -> None:
        self.output_tokens += PART * (output_tokens - self.output_tokens)

    def context(
        self, endpoints: Sequence[Endpoint], affinity_budget_s: float, prefix_pays: bool
    ) -> Context:
        """Samples what is in flight, and says what scorers may know for the next while."""
        rifs = self._rifs
        rifs.extend(e.inflight / e.weight for e in endpoints)
        while len(rifs) > RIF_TICKS * len(endpoints):
            rifs.popleft()
        limit = sorted(rifs)[int(RIF_QUANTILE * len(rifs))] if rifs else 0.0
        return Context(affinity_budget_s, limit, self.ttft_s, self.tokens, prefix_pays)
