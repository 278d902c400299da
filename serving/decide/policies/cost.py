"""The expected time to the first byte in seconds, the one cost that network, load, cache and
hardware are weighed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trainmesh.serving.decide.learn.estimate import RUNNING_SHARE, RUNNING_TOKENS
from trainmesh.serving.decide.types import Candidate, Context, RequestFacts

__all__ = ["expected_ttfts_s", "network_s"]

REPORT_LIMIT_S: Final = 5.0


def network_s(candidate: Candidate, nbytes: int) -> float:
    """One round trip and the body's way there."""
    bandwidth = candidate.bandwidth_bytes_per_s
    return candidate.rtt_s + (nbytes / bandwidth if bandwidth > 0 else 0.0)


def expected_ttfts_s(
    facts: RequestFacts, candidates: Sequence[Candidate], context: Context, *, cache: bool
) -> list[float]:
    """T = rtt + nbytes / bandwidth + (base + s_per_token * work) / (derate * weight).

    ``work`` is that of ``estimate.work_tokens``, and requests that the engine reports as queued
    beyond all that the routers have there; ``cache``: without the tokens it has cached.
    """
    nbytes = facts.nbytes
    prompt = facts.prompt_tokens + 1.0
    costs: list[float] = []
    for c in candidates:
        inflight = c.inflight
        work = prompt + c.waiting_tokens + RUNNING_TOKENS * inflight
        work += RUNNING_SHARE * c.inflight_tokens
        if cache:
            work -= c.cached_tokens
        if c.queued > inflight and c.report_age_s < REPORT_LIMIT_S:
            work += (c.queued - inflight) * context.tokens
        cost = c.rtt_s + (c.base_s + c.s_per_token * work) / (c.derate * c.weight)
        bandwidth = c.bandwidth_bytes_per_s
        if bandwidth > 0:
            cost += nbytes / bandwidth
        costs.append(cost)
    return costs
