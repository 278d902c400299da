"""Policies that keep what belongs together in one place."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final

from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.types import Candidate, Context, RequestFacts

__all__ = ["Affinity", "Prefix", "home", "rendezvous"]

BOUND: Final = 1.25
"""No endpoint takes more than this times its share (Mirrokni, Thorup and Zadimoghaddam,
"Consistent hashing with bounded loads", SODA 2018)."""
OUT: Final = 1e6
_MASK: Final = (1 << 64) - 1


def rendezvous(session_key: int, candidate: Candidate) -> float:
    """The candidate's distance from the session; the least is its home. Highest random weight
    hashing: when a candidate comes or goes, only sessions of that one move. Weighted as in
    Schindelhauer and Schomaker, SPAA 2005."""
    x = (session_key ^ candidate.key * 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK  # the finalizer of splitmix64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return -log(((x ^ x >> 31) + 1) / 2.0**64) / candidate.weight


def home(session_key: int, candidates: Sequence[Candidate]) -> int:
    """The place in ``candidates`` of the session's home."""
    distances = [rendezvous(session_key, c) for c in candidates]
    return distances.index(min(distances))


class Affinity:
    """Each session at its home, or at the next one with room; others where least is in flight."""

    name = "affinity"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        key = facts.session_key
        if not key:
            return [(c.inflight + 1) / c.weight for c in candidates]
        total = sum(c.inflight for c in candidates) + 1
        share = BOUND * total / sum(c.weight for c in candidates)
        return [
            rendezvous(key, c) + (0.0 if c.inflight < share * c.weight else OUT) for c in candidates
        ]


class Prefix:
    """Where most of the prompt is cached, unless the first byte would come too late there: each
    tenth of the prompt is worth a tenth of the affinity budget, beyond what it saves."""

    name = "prefix"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        costs = expected_ttfts_s(facts, candidates, context, cache=True)
        worth_s = context.affinity_budget_s / (facts.prompt_tokens + 1)
        return [cost - worth_s * c.cached_tokens for c, cost in zip(candidates, costs, strict=True)]
