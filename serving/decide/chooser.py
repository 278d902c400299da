"""Which endpoint takes a request: of those that can, the one with the least score."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Final

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import LimitsConfig, ModelConfig
from trainmesh.serving.decide.attempt_tracker import AttemptTracker
from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.endpoint_states import EndpointStates
from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.policies.guard import Guard
from trainmesh.serving.decide.policies.shadow import Versus
from trainmesh.serving.decide.types import HASH_BITS, RequestFacts, Scorer

__all__ = ["Guards", "Chooser"]

MAX_CANDIDATES: Final = 16
"""Scored for one request: the best of some is nearly as good as the best of all (Mitzenmacher,
2001; Prequal keeps as many probes), costs little, and workers with old news don't all want the
same one."""
MAX_HOLDERS: Final = 4
"""Added to those: a long prompt that is cached outweighs much, and few endpoints hold it."""


class Guards:
    """The policies of a model that decide or look on.

    Raises:
        ConfigError: the policy or the shadow policy isn't in ``scorers``.
    """

    __slots__ = ("policy", "shadow", "shadow_share")

    def __init__(
        self,
        model: str,
        config: ModelConfig,
        scorers: Mapping[str, Scorer],
        limits: LimitsConfig,
        clock: Callable[[], float],
    ) -> None:
        shadow = config.shadow
        self.policy = Guard(_scorer(model, config.policy, scorers), limits.decision_s, clock)
        self.shadow: Guard | None = None
        if shadow is not None:
            self.shadow = Guard(_scorer(model, shadow.policy, scorers), limits.decision_s, clock)
        self.shadow_share = shadow.share if shadow is not None else 0.0
        """Of the requests, which the shadow policy decides (an A/B test); 0: it only looks on."""

    def take_lines(self) -> list[str]:
        """What went wrong since the last call."""
        lines = []
        for guard in (self.policy, self.shadow):
            if guard is not None and guard.line:
                lines.append(guard.line)
                guard.line = ""
        return lines


class Chooser:
    """A pool's; see there for what the methods mean.

    Args:
        guards: the policies.
        endpoint_states: who may take requests.
        tracker: what is known of them.
        versus: told what a shadow policy would have chosen.
        rng: the only source of chance.
        keeps_rows: choices keep what the policy saw of each candidate, to be written down.
    """

    __slots__ = ("_endpoint_states", "_guard", "_keeps_rows", "_random", "_shadow", "_share",
                 "_tracker", "_turn", "_versus")  # fmt: skip

    def __init__(
        self,
        guards: Guards,
        endpoint_states: EndpointStates,
        tracker: AttemptTracker,
        versus: Versus,
        rng: random.Random,
        *,
        keeps_rows: bool,
    ) -> None:
        self._guard = guards.policy
        self._shadow = guards.shadow
        self._share = guards.shadow_share
        self._endpoint_states = endpoint_states
        self._tracker = tracker
        self._versus = versus
        self._random = rng.random
        self._turn = rng.randrange(1 << 16)
        """Counts choices; begins anywhere, so that workers don't all begin with the same one."""
        self._keeps_rows = keeps_rows

    def choose(
        self,
        facts: RequestFacts,
        now_s: float,
        tried: Collection[Endpoint],
        allowed: frozenset[int] | None,
    ) -> RoutingChoice:
        """See ``Pool.choose``."""
        endpoint_states = self._endpoint_states
        if tried or allowed is not None or endpoint_states.part:
            candidates = endpoint_states.takers(self._random, now_s, tried, allowed)
        else:
            candidates = [e for e in endpoint_states.full if e.inflight < e.max_inflight]
        reason = ""
        if not candidates:
            candidates = endpoint_states.last_resort(tried, allowed)
            if not candidates:
                none = self._none(endpoint_states.why_none(tried, allowed))
                none.full = endpoint_states.only_full(tried, allowed)
                return none
            reason = f"all others are out; {candidates[0].health.reason}"
        self._prepare(facts)
        if len(candidates) > MAX_CANDIDATES:
            candidates = self._some(facts, candidates)
        candidates = self._in_turn(candidates)
        draw = self._random()
        guard, arm = self._guard, 0
        if self._share and self._shadow is not None and self._random() < self._share:
            guard, arm = self._shadow, 1
        context = self._tracker.context
        rows = [c.row() for c in candidates] if self._keeps_rows else ()
        scores, place = guard.score(facts, candidates, context, draw, now_s)
        chosen = candidates[place]
        choice = RoutingChoice(
            chosen,
            reason,
            guard.policy,
            draw,
            context,
            candidates,
            rows,
            scores,
            endpoint_states.exclusions,
            endpoint_states.version,
            arm,
        )
        if self._shadow is not None and not self._share:
            self._watch(self._shadow, facts, candidates, choice, now_s)
        return choice

    def _none(self, reason: str) -> RoutingChoice:
        endpoint_states = self._endpoint_states
        return RoutingChoice(
            None,
            reason,
            self._guard.scorer.name,
            0.0,
            self._tracker.context,
            (),
            (),
            (),
            endpoint_states.exclusions,
            endpoint_states.version,
            0,
        )

    def _some(self, facts: RequestFacts, candidates: list[Endpoint]) -> list[Endpoint]:
        """Neighbours from a place by chance, or from the session's own place, which moves by one
        at most when an endpoint comes or goes; and those that have most of the prompt cached."""
        n = len(candidates)
        key = facts.session_key or int(self._random() * 2**HASH_BITS)
        first = key * n >> HASH_BITS
        beyond = max(0, first + MAX_CANDIDATES - n)
        some = candidates[first : first + MAX_CANDIDATES] + candidates[:beyond]
        holders = [c for c in candidates if c.cached_tokens and c not in some]
        holders.sort(key=_cached_tokens, reverse=True)
        return some + holders[:MAX_HOLDERS]

    def _in_turn(self, candidates: list[Endpoint]) -> list[Endpoint]:
        """Another one first each time; the other way round every other time, so that of two
        neighbours with equal scores not always the same one follows those that lose."""
        n = len(candidates)
        self._turn += 1
        cycle, first = divmod(self._turn, n)
        if first:
            candidates = candidates[first:] + candidates[:first]
        if cycle & 1:
            candidates.reverse()
        return candidates

    def _prepare(self, facts: RequestFacts) -> None:
        """Makes the endpoints' fields those for this request."""
        if facts.stream != self._tracker.kind:
            self._tracker.publish_speeds(facts.stream)
        if facts.blocks or self._tracker.prefix_cache.set:
            self._tracker.prefix_cache.prepare(facts, self._endpoint_states.endpoints)

    def _watch(
        self,
        shadow: Guard,
        facts: RequestFacts,
        candidates: list[Endpoint],
        choice: RoutingChoice,
        now_s: float,
    ) -> None:
        """What the shadow policy would have taken."""
        _, place = shadow.score(facts, candidates, choice.context, choice.draw, now_s)
        other = candidates[place]
        choice.shadow = other
        choice.shadow_policy = shadow.policy
        chosen = choice.endpoint
        if chosen is not None:
            costs = expected_ttfts_s(
                facts, (chosen, other), choice.context, cache=choice.context.prefix_pays
            )
            self._versus.watched(costs[0], costs[1], chosen is other)


def _cached_tokens(endpoint: Endpoint) -> int:
    return endpoint.cached_tokens


def _scorer(model: str, policy: str, scorers: Mapping[str, Scorer]) -> Scorer:
    try:
        return scorers[policy]
    except KeyError:
        raise ConfigError(
            f"model {model}: unknown policy {policy!r}; one of: {', '.join(sorted(scorers))}"
        ) from None
