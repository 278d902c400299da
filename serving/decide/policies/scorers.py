"""The simple policies, and how all are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

from trainmesh.serving.decide.policies.affinity import Affinity, Prefix
from trainmesh.serving.decide.policies.cost import expected_ttfts_s, network_s
from trainmesh.serving.decide.policies.hybrid import Hybrid
from trainmesh.serving.decide.types import Candidate, Context, RequestFacts, Scorer

__all__ = [
    "BUILT_IN",
    "GROUP",
    "Heuristic",
    "LeastRequests",
    "LeastTokens",
    "Mesh",
    "PowerOfTwo",
    "Predictive",
    "Prequal",
    "RoundRobin",
    "load_scorers",
]

GROUP: Final = "trainmesh.scorers"
OUT: Final = 1e6
"""Added to the score of a candidate that is taken only if there is no other."""
REPORT_LIMIT_S: Final = 5.0
"""Reports older than this say nothing."""


class RoundRobin:
    """In turn; at random in proportion to the weights where those differ."""

    name = "round_robin"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        weights = [c.weight for c in candidates]
        if min(weights) == max(weights):
            return [0.0] * len(weights)
        left = draw * sum(weights)
        scores = []
        for weight in weights:
            scores.append(0.0 if left < weight else 1.0)
            left -= weight
        return scores


class LeastRequests:
    """Fewest requests in flight for its weight."""

    name = "least_requests"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        return [(c.inflight + 1) / c.weight for c in candidates]


class LeastTokens:
    """Fewest tokens in flight for its weight, those of this request included."""

    name = "least_tokens"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        own = facts.prompt_tokens + facts.output_tokens + 1
        return [(c.inflight_tokens + own) / c.weight for c in candidates]


class PowerOfTwo:
    """The less loaded of two at random (Mitzenmacher 2001)."""

    name = "power_of_two"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        n = len(candidates)
        scores = [OUT] * n
        first = int(draw * n)
        pair = [first]
        if n > 1:
            pair.append((first + 1 + int((draw * n - first) * (n - 1))) % n)
        for i in pair:
            scores[i] = (candidates[i].inflight + 1) / candidates[i].weight
        return scores


class Heuristic:
    """Requests in flight, queue, memory and utilisation, each as a part of what is much.

    A queue of 5 is much (llm-d's saturation detector), and so are 32 requests in flight; memory
    counts as k / (1 - k), weighted as in SMG's least_load. The engine's words count for 5 s.
    """

    name = "heuristic"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        return [self._load(c) for c in candidates]

    def _load(self, c: Candidate) -> float:
        load = (c.inflight + 1) / 32.0
        if c.report_age_s < REPORT_LIMIT_S:
            use = min(c.kv_use, 0.99)
            load += c.queued / 5.0 + 0.15 * use / (1.0 - use)
            load += max(0, c.running - c.inflight) / 32.0
        return load / (c.weight * c.derate)


class Mesh:
    """The network, and an ordinary TTFT for each request in flight: needs no estimates."""

    name = "mesh"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        return [
            network_s(c, facts.nbytes) + context.ttft_s * (c.inflight + 1) / (c.weight * c.derate)
            for c in candidates
        ]


class Predictive:
    """The least expected TTFT, nothing else."""

    name = "predictive"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        return expected_ttfts_s(facts, candidates, context, cache=False)


class Prequal:
    """Hot-cold lexicographic rule: of those whose requests in flight are not above the 0.84
    quantile the one with the least latency, else the one with the fewest in flight ("Load is not
    what you should balance: Introducing Prequal", NSDI'24, section 4)."""

    name = "prequal"

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        costs = expected_ttfts_s(facts, candidates, context, cache=False)
        limit = context.rif_limit
        return [
            cost if c.inflight / c.weight <= limit else OUT + c.inflight / c.weight
            for c, cost in zip(candidates, costs, strict=True)
        ]


BUILT_IN: Mapping[str, Callable[[], Scorer]] = MappingProxyType(
    {
        "round_robin": RoundRobin,
        "least_requests": LeastRequests,
        "least_tokens": LeastTokens,
        "power_of_two": PowerOfTwo,
        "heuristic": Heuristic,
        "mesh": Mesh,
        "prequal": Prequal,
        "affinity": Affinity,
        "prefix": Prefix,
        "predictive": Predictive,
        "hybrid": Hybrid,
    }
)


def load_scorers() -> tuple[dict[str, Scorer], list[str]]:
    """All policies by name, and a line for each plug-in that can't be used."""
    scorers = {name: make() for name, make in BUILT_IN.items()}
    warnings = []
    for point in entry_points(group=GROUP):
        if point.name in BUILT_IN:
            warnings.append(f"policy plug-in {point.name} ({point.value}): the name is built in")
            continue
        try:
            scorers[point.name] = _make(point)
        except Exception as error:  # another author's code: whatever it raises, we serve without it
            warnings.append(
                f"policy plug-in {point.name} ({point.value}) can't be used: "
                f"{type(error).__name__}: {error}"
            )
    return scorers, warnings


def _make(point: EntryPoint) -> Scorer:
    scorer: Scorer = point.load()()
    if not callable(getattr(scorer, "score", None)):
        raise TypeError("it has no method score(facts, candidates, context, draw)")
    return scorer
