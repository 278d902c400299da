"""Attempts beyond the first: when a retry or a hedge may be made."""

from __future__ import annotations

from typing import Final

from trainmesh.serving.config.types import HedgeConfig, RetryConfig
from trainmesh.serving.decide.health import EndpointHealth
from trainmesh.serving.decide.learn.histogram import TtftQuantiles
from trainmesh.serving.decide.retries.budget import Budget
from trainmesh.serving.decide.retries.client_errors import ClientErrors
from trainmesh.serving.decide.types import RequestFacts

__all__ = ["RetryBudgets"]

RETRY_FLOOR_PER_S: Final = 5.0
RETRY_BURST: Final = 50.0
HEDGE_BURST: Final = 20.0
"""Ordinary requests whose tokens the hedge budget holds at most."""
TRIAL_SHARE: Final = 0.02
"""Tokens of copies that nobody reads, of all tokens."""
TRIAL_BURST: Final = 4.0
"""Ordinary requests whose tokens that budget holds at most: an endpoint that is out comes back
after one to four good trials."""
NEVER_S: Final = float("inf")


class RetryBudgets:
    """The budgets of a pool, and the TTFT quantile that a hedge waits for."""

    __slots__ = (
        "_hedge",
        "_hedges",
        "_quantiles",
        "_retries",
        "_retry",
        "_trials",
        "client_errors",
    )

    def __init__(self, retry: RetryConfig, hedge: HedgeConfig, tokens: float, now_s: float) -> None:
        """``tokens``: those of an ordinary request."""
        self._retry = retry
        self._hedge = hedge
        self._quantiles = TtftQuantiles(hedge.quantile)
        self.client_errors = ClientErrors(now_s)
        self._retries = Budget(
            retry.budget, floor_per_s=RETRY_FLOOR_PER_S, burst=RETRY_BURST, now_s=now_s
        )
        self._trials = Budget(
            TRIAL_SHARE, floor_per_s=0.0, burst=TRIAL_BURST * max(tokens, 1.0), now_s=now_s
        )
        self._hedges = Budget(
            hedge.budget, floor_per_s=0.0, burst=HEDGE_BURST * max(tokens, 1.0), now_s=now_s
        )

    def asked(self, tokens: int) -> None:
        self._retries.gain(1.0)
        self.client_errors.asked()
        self._hedges.gain(tokens)
        self._trials.gain(tokens)

    def first_byte(self, prompt_tokens: int, stream: bool, ttft_s: float) -> None:
        self._quantiles.add(prompt_tokens, stream, ttft_s)

    def tick(self, tokens: float, now_s: float) -> None:
        self._hedges.burst = HEDGE_BURST * max(tokens, 1.0)
        self._trials.burst = TRIAL_BURST * max(tokens, 1.0)
        self._quantiles.tick(now_s)

    def may_retry(self, attempts: int, now_s: float) -> bool:
        """Takes one retry from the budget; ``attempts`` were made."""
        return attempts < self._retry.attempts and self._retries.take(1.0, now_s)

    def may_ask_again(
        self, health: EndpointHealth, status: int, attempts: int, now_s: float
    ) -> bool:
        """See ``Pool.may_ask_again``; ``health`` of the endpoint that refused."""
        if attempts >= self._retry.attempts:
            return False
        if health.failures or not health.proven:
            return True
        return self.client_errors.may_ask_again(status, now_s)

    def may_try(self, facts: RequestFacts, now_s: float) -> bool:
        """Takes a copy's tokens from the budget."""
        return self._trials.take(trial_tokens(facts), now_s)

    def cost_nothing(self, facts: RequestFacts) -> None:
        """The copy was not answered."""
        self._trials.give_back(trial_tokens(facts))

    def hedge_delay_s(self, facts: RequestFacts) -> float:
        """How long the first attempt may take before a hedge starts; infinite: there is none."""
        if not self._hedge.enabled or self._hedge.budget <= 0:
            return NEVER_S
        delay_s = self._quantiles.get_s(facts.prompt_tokens, facts.stream)
        return max(delay_s, self._hedge.min_delay_s)

    def may_hedge(self, facts: RequestFacts, load: float, now_s: float) -> bool:
        """Takes a hedge's tokens from the budget; ``load`` of the pool in [0, 1]."""
        if not self._hedge.enabled or load > self._hedge.max_load:
            return False
        return self._hedges.take(facts.prompt_tokens + facts.output_tokens, now_s)


def trial_tokens(facts: RequestFacts) -> int:
    """What a copy makes an endpoint do: it is cancelled at the first byte, which comes after the
    first token of a stream, and with the last of any other answer."""
    return facts.prompt_tokens + (1 if facts.stream else facts.output_tokens)
