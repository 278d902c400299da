"""What time changes in a pool: outliers, standbys, endpoints that nobody has asked for a while."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from trainmesh.serving.config.types import ModelConfig
from trainmesh.serving.decide.attempt_tracker import AttemptTracker
from trainmesh.serving.decide.demand import Demand
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.endpoint_states import EndpointStates
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.learn import outliers
from trainmesh.serving.decide.types import RequestFacts

__all__ = ["Upkeep"]

JUDGE_S: Final = 2e-3
"""Time between two looks for outliers, for each endpoint."""
STALE_S: Final = 1.0
"""An endpoint that takes requests and was sent none for that long is tried by a copy,"""
COPY_PERIOD_S: Final = 2.0
"""and again after that, as long as nothing else is sent there."""


class Upkeep:
    """A pool's.

    Args:
        config: of the model.
        endpoint_states: who may take requests; changed here.
        tracker: what is known of them; what scorers may know is put there.
        demand: says when standbys are wanted.
        now_s: monotonic seconds.
    """

    __slots__ = ("_config", "_demand", "_endpoint_states", "_judged_s", "_stale", "_tracker")

    def __init__(
        self,
        config: ModelConfig,
        endpoint_states: EndpointStates,
        tracker: AttemptTracker,
        demand: Demand,
        now_s: float,
    ) -> None:
        self._config = config
        self._endpoint_states = endpoint_states
        self._tracker = tracker
        self._demand = demand
        self._judged_s = now_s
        self._stale: Endpoint | None = None
        """To be tried by a copy though it is well."""

    def tick(self, now_s: float) -> list[str]:
        """To be called every 0.1 s. Returns a line for each change of state since the last call."""
        endpoint_states, tracker = self._endpoint_states, self._tracker
        endpoints = endpoint_states.endpoints
        for endpoint in endpoints:
            endpoint.age(now_s)
        tracker.forecast.refresh(endpoints, now_s)
        tracker.publish_speeds(tracker.kind)
        endpoint_states.health_tick(now_s)
        self._eject_outliers(now_s)
        self._promote(now_s)
        self._stale = self._find_stale(now_s)
        prefix_value = tracker.prefix_cache.value
        prefix_value.tick(now_s)
        tracker.retry_budgets.tick(tracker.traffic_stats.tokens, now_s)
        tracker.context = tracker.traffic_stats.context(
            endpoints, self._config.affinity_budget_s, prefix_value.pays
        )
        lines = list(endpoint_states.lines)
        endpoint_states.lines.clear()
        return lines

    def trial(
        self,
        facts: RequestFacts,
        now_s: float,
        sent_to: Collection[Endpoint],
        allowed: frozenset[int] | None,
    ) -> Endpoint | None:
        """An endpoint that is out, or that nobody has chosen for a while, and is due to be tried
        by a copy of this request, if any. Never one that has the request already (``sent_to``),
        and only as many as the budget of tokens allows.

        The copy is to be begun with ``AttemptKind.TRIAL``, cancelled at its first byte or after
        ``TRIAL_TIMEOUT_S`` (then it ends as ``TIMEOUT``), and its answer thrown away.
        """
        endpoint_states, retry_budgets = self._endpoint_states, self._tracker.retry_budgets
        if len(endpoint_states.full) < len(endpoint_states.endpoints):
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

    def _find_stale(self, now_s: float) -> Endpoint | None:
        """An endpoint that takes requests and gets none. Its estimates may be wrong by now, because
        its first answers came from a cold start, or because it was ill."""
        for endpoint in self._endpoint_states.full:
            asked_s = endpoint.asked_s
            if 0.0 <= asked_s <= now_s - STALE_S and endpoint.copied_s <= now_s - COPY_PERIOD_S:
                return endpoint
        return None

    def _eject_outliers(self, now_s: float) -> None:
        if now_s - self._judged_s < JUDGE_S * len(self._endpoint_states.endpoints):
            return
        self._judged_s = now_s
        usable = self._endpoint_states.usable()
        eject = self._config.eject
        reasons = outliers.judge(
            usable, self._tracker.forecast.models, eject.latency_ratio, eject.samples, now_s
        )
        for endpoint, reason in zip(usable, reasons, strict=True):
            if reason and endpoint.health.state is not HealthState.EJECTED:
                self._endpoint_states.eject(endpoint, reason, now_s, slow=True)

    def _promote(self, now_s: float) -> None:
        endpoints = self._endpoint_states.endpoints
        standbys = [e for e in endpoints if e.config.standby]
        inflight = sum(e.inflight for e in endpoints)
        if not standbys:
            self._demand.tick(inflight, sum(e.max_inflight for e in endpoints), 1, now_s)
            return
        ordinary = [
            e
            for e in self._endpoint_states.usable()
            if not e.config.standby and e.health.state is not HealthState.EJECTED
        ]
        capacity = sum(e.max_inflight for e in ordinary)
        if self._demand.tick(inflight, capacity, len(ordinary), now_s):
            reason = self._demand.reason
            for endpoint in standbys:
                endpoint.promoted = bool(reason)
                word = f"standby is used: {reason}" if reason else "standby again: it is quiet"
                self._endpoint_states.record_change(endpoint, word)
