"""The endpoints of one model: chooses one for each request, and learns from the outcome."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import LimitsConfig, ModelConfig
from trainmesh.serving.decide.attempt_tracker import AttemptTracker
from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.demand import Demand
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.endpoint_states import EndpointStates
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.learn import outliers
from trainmesh.serving.decide.learn.forecast import Forecast
from trainmesh.serving.decide.learn.prefix_cache_model import PrefixCacheModel
from trainmesh.serving.decide.learn.traffic_stats import TrafficStats
from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.policies.guard import Guard
from trainmesh.serving.decide.policies.shadow import Versus
from trainmesh.serving.decide.retry_budgets import RetryBudgets
from trainmesh.serving.decide.shared import link
from trainmesh.serving.decide.types import (
    HASH_BITS,
    AttemptKind,
    AttemptOutcome,
    EndpointSignal,
    RequestFacts,
    Scorer,
)

__all__ = ["TRIAL_TIMEOUT_S", "Pool"]

MAX_CANDIDATES: Final = 16
"""Scored for one request: the best of some is nearly as good as the best of all (Mitzenmacher,
2001; Prequal keeps as many probes), costs little, and workers with old news don't all want the
same one."""
MAX_HOLDERS: Final = 4
JUDGE_S: Final = 2e-3
"""Time between two looks for outliers, for each endpoint."""
STALE_S: Final = 1.0
"""An endpoint that takes requests and was sent none for that long is tried by a copy,"""
COPY_PERIOD_S: Final = 2.0
"""and again after that, as long as nothing else is sent there."""
TRIAL_TIMEOUT_S: Final = 5.0
"""A trial that has no first byte by then has failed."""


class Pool:
    """Chooses, counts and learns; owned by one worker, used from one thread.

    Args:
        scorers: every policy by its name.
        rng: the only source of chance.
        previous: the pool that this one replaces; it must not be used any more. Endpoints with
            an equal url keep all that is known of them.
        clock: seconds, for ``limits.decision_s`` only.

    Raises:
        ConfigError: the policy or the shadow policy isn't in ``scorers``.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        *,
        limits: LimitsConfig,
        scorers: Mapping[str, Scorer],
        rng: random.Random,
        now_s: float,
        previous: Pool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.config = config
        self._random = rng.random
        self._turn = rng.randrange(1 << 16)
        self._guard = Guard(self._scorer(config.policy, scorers), limits.decision_s, clock)
        self._shadow = (
            Guard(self._scorer(config.shadow.policy, scorers), limits.decision_s, clock)
            if config.shadow
            else None
        )
        self._share = config.shadow.share if config.shadow else 0.0
        self.versus: Versus = Versus()
        compared = (config.policy, config.shadow)
        if previous is not None and compared == (previous.config.policy, previous.config.shadow):
            self.versus = previous.versus
        old: AttemptTracker | None = previous._tracker if previous is not None else None
        prefix_cache = old.prefix_cache if old is not None else PrefixCacheModel()
        traffic_stats = old.traffic_stats if old is not None else TrafficStats()
        self.demand: Demand = previous.demand if previous is not None else Demand(now_s)
        self.endpoints = _endpoints(config, prefix_cache, previous)
        self._endpoint_states = EndpointStates(self.endpoints, config.eject)
        if previous is not None:
            self._endpoint_states.version = previous.version + 1
        forecast = old.forecast if old is not None else Forecast()
        retry_budgets = RetryBudgets(config.retry, config.hedge, traffic_stats.tokens, now_s)
        tested = self.versus if self._share else None
        self._tracker: AttemptTracker = AttemptTracker(
            self._endpoint_states, prefix_cache, traffic_stats, forecast, retry_budgets, tested
        )
        self._stale: Endpoint | None = None
        self._judged_s = now_s
        self.tick(now_s)

    @property
    def version(self) -> int:
        """Changes whenever ``exclusions`` does."""
        return self._endpoint_states.version

    def exclusions(self) -> Mapping[str, str]:
        """Endpoint -> why it takes no requests, whatever they are."""
        return self._endpoint_states.exclusions

    @property
    def shares(self) -> bool:
        """Whether another model is at one of its URLs, so that its capacity changes any time."""
        return any(self._endpoint_states.twins.values())

    @property
    def in_service(self) -> bool:
        """Whether any endpoint may take requests, be it at times."""
        return bool(self._endpoint_states.full or self._endpoint_states.part)

    def why_out(self) -> str:
        """Why none of the endpoints is in service; empty if one is, as far as is known."""
        serving = self._endpoint_states.full + self._endpoint_states.part
        reasons = []
        for endpoint in self.endpoints:
            reason = endpoint.signal.unready
            if not reason and endpoint not in serving:
                reason = self._endpoint_states.public(endpoint)
            if not reason:
                return ""
            reasons.append(f"{endpoint.name}: {reason}")
        return "; ".join(reasons)

    @property
    def inflight(self) -> int:
        """This worker's."""
        return sum(e.own_inflight for e in self.endpoints)

    @property
    def prefix_reuse(self) -> float:
        """Share of prompt tokens that some endpoint had been sent before, lately."""
        return self._tracker.prefix_cache.value.prefix_cache

    @property
    def prefix_pays(self) -> bool:
        return self._tracker.prefix_cache.value.pays

    def capacity(self) -> int:
        """Requests that this worker may have in flight: less than the configured sum where other
        workers and routers have some, or an engine says that it is full."""
        usable = (
            self._endpoint_states.full + self._endpoint_states.part
            or self._endpoint_states.usable()
        )
        return sum(e.room() for e in usable)

    def update(self, signals: Mapping[str, EndpointSignal], now_s: float) -> None:
        """Takes a new snapshot; endpoints that aren't in it keep their last signal."""
        for endpoint in self.endpoints:
            signal = signals.get(endpoint.name)
            if signal is not None:
                endpoint.see(signal, now_s)
        self._endpoint_states.rebuild()

    @staticmethod
    def share(pools: Iterable[Pool], previous: Iterable[Pool] = ()) -> None:
        """Let models at one URL share what belongs to the server behind it (``shared``).

        Args:
            pools: all of a worker.
            previous: those that ``pools`` replace.
        """
        for pool in previous:
            pool._endpoint_states.unlink()
        link([pool._endpoint_states for pool in pools])

    # Choosing

    def choose(
        self,
        facts: RequestFacts,
        now_s: float,
        *,
        tried: Collection[Endpoint] = (),
        allowed: frozenset[int] | None = None,
    ) -> RoutingChoice:
        """Says where an attempt of a request should go.

        Args:
            facts: the request.
            now_s: monotonic seconds.
            tried: endpoints that had an attempt of it already; they get no other.
            allowed: indices of endpoints that its tenant may use; None: all.
        """
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
        rows = [c.row() for c in candidates]
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

    def trial(
        self,
        facts: RequestFacts,
        now_s: float,
        *,
        sent_to: Collection[Endpoint] = (),
        allowed: frozenset[int] | None = None,
    ) -> Endpoint | None:
        """An endpoint that is out, or that nobody has chosen for a while, and is due to be tried
        by a copy of this request, if any. Never one that has the request already (``sent_to``),
        and only as many as the budget of tokens allows.

        The copy is to be begun with ``AttemptKind.TRIAL``, cancelled at its first byte or after
        ``TRIAL_TIMEOUT_S`` (then it ends as ``TIMEOUT``), and its answer thrown away.
        """
        endpoint_states, retry_budgets = self._endpoint_states, self._tracker.retry_budgets
        if len(endpoint_states.full) < len(self.endpoints):
            out = endpoint_states.trial(now_s, sent_to, allowed)
            if out is not None and retry_budgets.may_try(facts, now_s):
                out.health.tried(now_s)
                return out
        stale = self._stale
        if stale is None or (allowed is not None and stale.index not in allowed):
            return None
        if stale in sent_to or not retry_budgets.may_try(facts, now_s):
            return None
        self._stale = None
        stale.copied_s = now_s
        return stale

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
            self._tracker.kind = facts.stream
            self._publish()
        if facts.blocks or self._tracker.prefix_cache.set:
            self._tracker.prefix_cache.prepare(facts, self.endpoints)

    def _publish(self) -> None:
        kind = self._tracker.kind
        for endpoint in self.endpoints:
            endpoint.base_s, endpoint.s_per_token = endpoint.models[kind]

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
            self.versus.watched(costs[0], costs[1], chosen is other)

    # What attempts do

    def begin(
        self, endpoint: Endpoint, facts: RequestFacts, kind: AttemptKind, now_s: float, arm: int = 0
    ) -> Attempt:
        """Counts an attempt that is being sent; ``arm`` of the choice."""
        return self._tracker.begin(endpoint, facts, kind, now_s, arm)

    def first_byte(self, attempt: Attempt, now_s: float) -> None:
        """The first byte of a good answer's body (2xx) is there."""
        self._tracker.first_byte(attempt, now_s)

    def end(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        now_s: float,
        output_tokens: int = 0,
        retry_after_s: float = 0.0,
    ) -> None:
        """Counts an attempt out; a second call does nothing.

        Args:
            attempt: from ``begin``.
            outcome: how it ended.
            now_s: monotonic seconds.
            output_tokens: what the answer had, 0 if unknown.
            retry_after_s: what the endpoint asked for with a 429 or 503, 0 if nothing.
        """
        self._tracker.end(attempt, outcome, now_s, output_tokens, retry_after_s)

    # More attempts

    def may_retry(self, facts: RequestFacts, attempts: int, now_s: float) -> bool:
        """Takes a retry from the budget; ``attempts`` of the request were made."""
        return self._tracker.retry_budgets.may_retry(attempts, now_s)

    def may_ask_again(self, endpoint: Endpoint, status: int, attempts: int, now_s: float) -> bool:
        """Whether another endpoint may be asked about a request that ``endpoint`` refused with
        ``status`` (``client_errors``); ``attempts`` of it were made. An endpoint that has failed
        since its last good answer, or has given none since it was let in, is not believed."""
        if attempts >= self.config.retry.attempts:
            return False
        health = endpoint.health
        if health.failures or not health.proven:
            return True
        return self._tracker.retry_budgets.client_errors.may_ask_again(status, now_s)

    def asking_paid(self, status: int) -> None:
        """The other endpoint answered well."""
        self._tracker.retry_budgets.client_errors.paid(status)

    def hedge_delay_s(self, facts: RequestFacts) -> float:
        """How long the first attempt may take before a hedge starts; infinite: there is none."""
        if len(self._endpoint_states.full) < 2:
            return float("inf")
        return self._tracker.retry_budgets.hedge_delay_s(facts)

    def may_hedge(self, facts: RequestFacts, now_s: float) -> bool:
        """Takes a hedge from the budget."""
        return self._tracker.retry_budgets.may_hedge(facts, self.demand.load, now_s)

    def expected_output_tokens(self) -> int:
        """Tokens of an ordinary answer lately."""
        return int(self._tracker.traffic_stats.output_tokens)

    # Time

    def tick(self, now_s: float) -> list[str]:
        """What time changes; to be called every 0.1 s. Returns a line for each change of state."""
        endpoint_states = self._endpoint_states
        for endpoint in self.endpoints:
            endpoint.age(now_s)
        self._tracker.forecast.refresh(self.endpoints, now_s)
        self._publish()
        endpoint_states.health_tick(now_s)
        self._eject_outliers(now_s)
        self._promote(now_s)
        self._stale = self._find_stale(now_s)
        self._tracker.prefix_cache.value.tick(now_s)
        self._tracker.retry_budgets.tick(self._tracker.traffic_stats.tokens, now_s)
        self._tracker.context = self._tracker.traffic_stats.context(
            self.endpoints, self.config.affinity_budget_s, self._tracker.prefix_cache.value.pays
        )
        lines = [f"model {self.name}: {line}" for line in endpoint_states.lines]
        endpoint_states.lines.clear()
        for guard in (self._guard, self._shadow):
            if guard is not None and guard.line:
                lines.append(f"model {self.name}: {guard.line}")
                guard.line = ""
        return lines

    def _find_stale(self, now_s: float) -> Endpoint | None:
        """An endpoint that takes requests and gets none. Its estimates may be wrong by now, because
        its first answers came from a cold start, or because it was ill."""
        for endpoint in self._endpoint_states.full:
            asked_s = endpoint.asked_s
            if 0.0 <= asked_s <= now_s - STALE_S and endpoint.copied_s <= now_s - COPY_PERIOD_S:
                return endpoint
        return None

    def _eject_outliers(self, now_s: float) -> None:
        if now_s - self._judged_s < JUDGE_S * len(self.endpoints):
            return
        self._judged_s = now_s
        usable = self._endpoint_states.usable()
        eject = self.config.eject
        reasons = outliers.judge(
            usable, self._tracker.forecast.models, eject.latency_ratio, eject.samples, now_s
        )
        for endpoint, reason in zip(usable, reasons, strict=True):
            if reason and endpoint.health.state is not HealthState.EJECTED:
                self._endpoint_states.eject(endpoint, reason, now_s, slow=True)

    def _promote(self, now_s: float) -> None:
        standbys = [e for e in self.endpoints if e.config.standby]
        if not standbys:
            inflight = sum(e.inflight for e in self.endpoints)
            self.demand.tick(inflight, sum(e.max_inflight for e in self.endpoints), 1, now_s)
            return
        inflight = sum(e.inflight for e in self.endpoints)
        ordinary = [
            e
            for e in self._endpoint_states.usable()
            if not e.config.standby and e.health.state is not HealthState.EJECTED
        ]
        capacity = sum(e.max_inflight for e in ordinary)
        if self.demand.tick(inflight, capacity, len(ordinary), now_s):
            reason = self.demand.reason
            for endpoint in standbys:
                endpoint.promoted = bool(reason)
                word = f"standby is used: {reason}" if reason else "standby again: it is quiet"
                self._endpoint_states.record_change(endpoint, word)

    def _scorer(self, policy: str, scorers: Mapping[str, Scorer]) -> Scorer:
        try:
            return scorers[policy]
        except KeyError:
            raise ConfigError(
                f"model {self.name}: unknown policy {policy!r}; "
                f"one of: {', '.join(sorted(scorers))}"
            ) from None


def _cached_tokens(endpoint: Endpoint) -> int:
    return endpoint.cached_tokens


def _endpoints(
    config: ModelConfig, prefix_cache: PrefixCacheModel, previous: Pool | None
) -> tuple[Endpoint, ...]:
    old = {e.config.url: e for e in previous.endpoints} if previous is not None else {}
    endpoints = []
    for index, endpoint_config in enumerate(config.endpoints):
        endpoint = old.get(endpoint_config.url)
        if endpoint is None:
            endpoint = Endpoint(index, endpoint_config, config.eject, prefix_cache.new_bit())
        else:
            endpoint.configure(index, endpoint_config, config.eject)
        endpoints.append(endpoint)
    return tuple(endpoints)
