"""Runs a scorer that may be slow or broken, because anybody may have written it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from trainmesh.serving.decide.policies.scorers import LeastRequests
from trainmesh.serving.decide.types import Candidate, Context, RequestFacts, Scorer

__all__ = ["Guard"]

STRIKES: Final = 3
"""Overruns in a row: one alone may be the garbage collector's or another process's."""
OUT_S: Final = 10.0


class Guard:
    """Scores within ``limit_s`` of ``clock``; by the requests in flight for a while after the
    scorer took longer ``STRIKES`` times in a row, or failed."""

    __slots__ = ("_clock", "_limit_s", "_out_until_s", "_strikes", "line", "policy", "scorer")

    def __init__(self, scorer: Scorer, limit_s: float, clock: Callable[[], float]) -> None:
        self.scorer = scorer
        self._limit_s = limit_s
        self._clock = clock
        self._strikes = 0
        self._out_until_s = float("-inf")
        self.policy = scorer.name
        """The policy that the last scores are of."""
        self.line = ""
        """What went wrong, until somebody takes it."""

    def score(
        self,
        facts: RequestFacts,
        candidates: Sequence[Candidate],
        context: Context,
        draw: float,
        now_s: float,
    ) -> tuple[Sequence[float], int]:
        """The scores, and the place of the least."""
        if now_s < self._out_until_s:
            return self._fallback(facts, candidates, context, draw)
        began_s = self._clock()
        try:
            scores = self.scorer.score(facts, candidates, context, draw)
            least = min(scores)
            place = scores.index(least)
            if len(scores) != len(candidates) or least != least:
                raise ValueError("it must return one number for each candidate")
        except Exception as error:  # another author's code: a request must not fail for it
            self._out(f"failed: {type(error).__name__}: {error}", now_s)
            return self._fallback(facts, candidates, context, draw)
        took_s = self._clock() - began_s
        if took_s <= self._limit_s:
            self._strikes = 0
        else:
            self._strikes += 1
            if self._strikes >= STRIKES:
                self._out(f"took {took_s * 1e3:.3g} ms, more than decision_s", now_s)
        self.policy = self.scorer.name
        return scores, place

    def _out(self, what: str, now_s: float) -> None:
        self._strikes = 0
        self._out_until_s = now_s + OUT_S
        self.line = f"policy {self.scorer.name} {what}; least_requests for {OUT_S:.0f} s"

    def _fallback(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> tuple[Sequence[float], int]:
        self.policy = LeastRequests().name
        scores = LeastRequests().score(facts, candidates, context, draw)
        return scores, scores.index(min(scores))
