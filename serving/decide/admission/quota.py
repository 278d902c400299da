"""A tenant's quota: token buckets of requests and of tokens, and requests in flight."""

from __future__ import annotations

from trainmesh.serving.config.types import TenantConfig

__all__ = ["TokenBucket", "Quota"]


class TokenBucket:
    """Fills with ``rate_per_s`` up to ``rate_per_s * burst_s``. More than that may be taken from
    a full one, which then owes the rest: a prompt larger than the burst is not refused for ever."""

    __slots__ = ("_at_s", "_left", "_most", "_rate_per_s")

    def __init__(self, rate_per_s: float, burst_s: float, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._most = max(rate_per_s * burst_s, 1.0)
        self._left = self._most
        self._at_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until ``amount`` may be taken; 0: now."""
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        wanted = min(amount, self._most)
        return max(0.0, wanted - self._left) / self._rate_per_s

    def take(self, amount: float) -> None:
        """Takes it; a negative amount gives back."""
        self._left = min(self._most, self._left - amount)


class Quota:
    """One tenant's, for all models together."""

    __slots__ = (
        "_others",
        "_requests",
        "_tokens",
        "config",
        "inflight",
        "others_inflight",
    )

    def __init__(self, config: TenantConfig, now_s: float) -> None:
        self.inflight = 0
        self.others_inflight = 0
        self._others: tuple[int, int] | None = None
        self.config = config
        self._requests = _bucket(config.requests_per_s, config, now_s)
        self._tokens = _bucket(config.tokens_per_s, config, now_s)

    def configure(self, config: TenantConfig, now_s: float) -> None:
        """Takes other limits; buckets begin full."""
        self.config = config
        self._requests = _bucket(config.requests_per_s, config, now_s)
        self._tokens = _bucket(config.tokens_per_s, config, now_s)

    def wait_s(self, tokens: int, now_s: float) -> float:
        """How long until a request of that many tokens is within the rates; 0: now."""
        by_requests = self._requests.wait_s(1.0, now_s) if self._requests is not None else 0.0
        by_tokens = self._tokens.wait_s(tokens, now_s) if self._tokens is not None else 0.0
        return max(by_requests, by_tokens)

    def take(self, requests: int, tokens: int) -> None:
        if self._requests is not None:
            self._requests.take(requests)
        if self._tokens is not None:
            self._tokens.take(tokens)

    def give_back(self, tokens: int) -> None:
        """Tokens that were taken and not used (negative: used beyond what was taken)."""
        if self._tokens is not None:
            self._tokens.take(-tokens)

    def hear_others(self, requests: int, tokens: int) -> None:
        """Totals of what other workers let in so far; what is new since the last call is taken.
        Totals that shrank are of a worker that was started again."""
        if self._others is not None:
            was_requests, was_tokens = self._others
            self.take(max(0, requests - was_requests), max(0, tokens - was_tokens))
        self._others = requests, tokens

    @property
    def full(self) -> bool:
        """Whether the tenant has as many requests in flight as it may."""
        most = self.config.max_inflight
        return most is not None and self.inflight + self.others_inflight >= most


def _bucket(rate_per_s: float | None, config: TenantConfig, now_s: float) -> TokenBucket | None:
    return TokenBucket(rate_per_s, config.burst_s, now_s) if rate_per_s else None
