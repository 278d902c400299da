"""The endpoints of one model: chooses one for each request, and learns from the outcome."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from trainmesh.serving.config.types import LimitsConfig, ModelConfig
from trainmesh.serving.decide.attempt_tracker import AttemptTracker, Learned
from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.chooser import Chooser, Guards
from trainmesh.serving.decide.demand import Demand
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.endpoint_states import EndpointStates
from trainmesh.serving.decide.learn.prefix_cache_model import PrefixCacheModel
from trainmesh.serving.decide.policies.shadow import Versus
from trainmesh.serving.decide.retries.retry_budgets import RetryBudgets
from trainmesh.serving.decide.shared import link
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    EndpointSignal,
    RequestFacts,
    Scorer,
)
from trainmesh.serving.decide.upkeep import Upkeep

__all__ = ["TRIAL_TIMEOUT_S", "Pool"]

TRIAL_TIMEOUT_S: Final = 5.0
"""A trial that has no first byte by then has failed."""


class Pool:
    """Chooses, counts and learns; owned by one worker, used from one thread.

    Args:
        scorers: every policy by its name.
        rng: the only source of chance.
        previous: the pool that this one replaces; it must not be used any more. Endpoints with
            an equal url keep all that is known of them.
        keeps_rows: choices keep what the policy saw of each candidate, to be written down.
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
        keeps_rows: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.config = config
        self._guards = Guards(name, config, scorers, limits, clock)
        self.versus: Versus = _versus(config, previous)
        learned = previous._tracker.learned if previous is not None else Learned()
        self.demand: Demand = previous.demand if previous is not None else Demand(now_s)
        self.endpoints = _endpoints(config, learned.prefix_cache, previous)
        self._endpoint_states = EndpointStates(self.endpoints, config.eject)
        if previous is not None:
            self._endpoint_states.version = previous.version + 1
        tokens = learned.traffic_stats.tokens
        self._tracker: AttemptTracker = AttemptTracker(
            self._endpoint_states, learned, RetryBudgets(config.retry, config.hedge, tokens, now_s),
            tested=self.versus if self._guards.shadow_share else None,
        )  # fmt: skip
        self._chooser = Chooser(
            self._guards, self._endpoint_states, self._tracker, self.versus, rng,
            keeps_rows=keeps_rows,
        )  # fmt: skip
        self._upkeep = Upkeep(config, self._endpoint_states, self._tracker, self.demand, now_s)
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
        return self._endpoint_states.why_out()

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
        states = self._endpoint_states
        usable = states.full + states.part or states.usable()
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
        return self._chooser.choose(facts, now_s, tried, allowed)

    def trial(
        self,
        facts: RequestFacts,
        now_s: float,
        *,
        sent_to: Collection[Endpoint] = (),
        allowed: frozenset[int] | None = None,
    ) -> Endpoint | None:
        """An endpoint that is due to be tried by a copy of this request (``Upkeep.trial``)."""
        return self._upkeep.trial(facts, now_s, sent_to, allowed)

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
        """Counts an attempt out; a second call does nothing (``AttemptTracker.end``)."""
        self._tracker.end(attempt, outcome, now_s, output_tokens, retry_after_s)

    # More attempts

    def may_retry(self, facts: RequestFacts, attempts: int, now_s: float) -> bool:
        """Takes a retry from the budget; ``attempts`` of the request were made."""
        return self._tracker.retry_budgets.may_retry(attempts, now_s)

    def may_ask_again(self, endpoint: Endpoint, status: int, attempts: int, now_s: float) -> bool:
        """Whether another endpoint may be asked about a request that ``endpoint`` refused with
        ``status`` (``client_errors``); ``attempts`` of it were made. An endpoint that has failed
        since its last good answer, or has given none since it was let in, is not believed."""
        return self._tracker.retry_budgets.may_ask_again(endpoint.health, status, attempts, now_s)

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

    def tick(self, now_s: float) -> list[str]:
        """What time changes; to be called every 0.1 s. Returns a line for each change of state."""
        lines = self._upkeep.tick(now_s) + self._guards.take_lines()
        return [f"model {self.name}: {line}" for line in lines]


def _versus(config: ModelConfig, previous: Pool | None) -> Versus:
    """Goes on as long as the same policies are compared."""
    if previous is not None:
        before = previous.config
        if (before.policy, before.shadow) == (config.policy, config.shadow):
            return previous.versus
    return Versus()


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
