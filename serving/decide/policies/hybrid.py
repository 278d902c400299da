"""Our policy: everything in seconds to the first byte."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from trainmesh.serving.decide.policies.affinity import home
from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.types import Candidate, Context, RequestFacts

__all__ = ["Hybrid"]

ALIKE: Final = 1.1
ALIKE_S: Final = 2e-4
"""Costs within this of the least are equal, estimates are no better: then requests in flight
decide, which also keeps the harm small that an endpoint does before it is seen to be stuck."""
HOT_KV: Final = 0.85
REPORT_LIMIT_S: Final = 5.0
OUT: Final = 1e6


class Hybrid:
    """The least expected TTFT, counting cached prefixes while that is seen to pay; candidates
    whose memory is nearly full come last (hot and cold as in Prequal, by KV-cache use); a session
    stays at its home, and a prompt where its prefix is, while that costs less than the affinity
    budget."""

    name = "hybrid"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        costs = expected_ttfts_s(facts, candidates, context, cache=context.prefix_pays)
        hot = [c.kv_use > HOT_KV and c.report_age_s < REPORT_LIMIT_S for c in candidates]
        if any(hot) and not all(hot):
            costs = [cost + OUT if h else cost for cost, h in zip(costs, hot, strict=True)]
        least = min(costs)
        alike = least * ALIKE + ALIKE_S
        scores = [alike if cost <= alike else cost for cost in costs]
        scores[_emptiest(candidates, costs, alike, draw)] = least
        budget_s = context.affinity_budget_s
        if facts.session_key:
            scores[home(facts.session_key, candidates)] -= budget_s
        if context.prefix_pays:
            worth_s = budget_s / (facts.prompt_tokens + 1)
            for i, c in enumerate(candidates):
                scores[i] -= worth_s * c.cached_tokens
        return scores


def _emptiest(
    candidates: Sequence[Candidate], costs: Sequence[float], limit: float, draw: float
) -> int:
    """Of those that cost no more than the limit the one with the fewest requests in flight for
    its weight, one of them by chance if there are several."""
    equal: list[int] = []
    fewest = inf
    for i, cost in enumerate(costs):
        if cost > limit:
            continue
        load = candidates[i].inflight / candidates[i].weight
        if load < fewest:
            fewest = load
            equal = [i]
        elif load == fewest:
            equal.append(i)
    return equal[int(draw * len(equal))]
