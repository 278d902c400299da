"""Which endpoints of a pool may take requests: the filters that don't depend on the request, kept
ready."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from trainmesh.serving.config.types import EjectConfig
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.health import EndpointHealth, HealthState
from trainmesh.serving.decide.types import AttemptOutcome

__all__ = ["EndpointStates"]

_LAST_RESORT: Final = (HealthState.SLOW_START, HealthState.BACKOFF, HealthState.EJECTED)
"""Who is asked when nobody else may be, the least bad first."""


class EndpointStates:
    """Keeps each endpoint's place: in full service, in part (slow start, backing off), out."""

    def __init__(self, endpoints: tuple[Endpoint, ...], eject: EjectConfig) -> None:
        self.endpoints = endpoints
        self._eject = eject
        self.version = 0
        self.exclusions: Mapping[str, str] = {}
        """Endpoint -> why it takes no requests."""
        self.full: list[Endpoint] = []
        self.part: list[Endpoint] = []
        self.twins: dict[Endpoint, list[tuple[EndpointStates, Endpoint]]] = {}
        """Endpoints of other models at the URL of one of these, see ``shared``."""
        self.lines: list[str] = []
        """Changes that nobody has told yet."""
        self.rebuild()

    def rebuild(self) -> None:
        """To be called after any change of a state, a signal or a standby."""
        self.full = []
        self.part = []
        exclusions = {}
        for endpoint in self.endpoints:
            reason = self._excluded(endpoint)
            if reason:
                exclusions[endpoint.name] = reason
            elif endpoint.health.state is HealthState.HEALTHY:
                self.full.append(endpoint)
                continue
            else:
                if endpoint.health.state is not HealthState.EJECTED:
                    self.part.append(endpoint)
                if endpoint.health.state is not HealthState.SLOW_START:
                    exclusions[endpoint.name] = endpoint.health.reason
        if exclusions != self.exclusions:
            self.exclusions = exclusions
            self.version += 1

    def usable(self) -> list[Endpoint]:
        """Those that only their own health can keep from requests."""
        return [e for e in self.endpoints if not self._excluded(e)]

    def takers(
        self,
        chance: Callable[[], float],
        now_s: float,
        tried: Collection[Endpoint],
        allowed: Collection[int] | None,
    ) -> list[Endpoint]:
        """Who may take this request now."""
        takers = list(self.full)
        for endpoint in self.part:
            if endpoint.health.takes(endpoint.own_inflight, chance(), now_s):
                takers.append(endpoint)
        return _fitting(takers, tried, allowed)

    def last_resort(
        self, tried: Collection[Endpoint], allowed: Collection[int] | None
    ) -> list[Endpoint]:
        """The least bad of those that are out, all of one state."""
        fitting = _fitting(self.usable(), tried, allowed)
        for state in _LAST_RESORT:
            found = [e for e in fitting if e.health.state is state]
            if found:
                return found
        return []

    def public(self, endpoint: Endpoint) -> str:
        """Why it takes no requests, for anybody to read: without the name of the person who ordered
        it. Empty if it does."""
        return endpoint.signal.public or self.exclusions.get(endpoint.name, "")

    def why_out(self) -> str:
        """See ``Pool.why_out``."""
        serving = self.full + self.part
        reasons = []
        for endpoint in self.endpoints:
            reason = endpoint.signal.unready
            if not reason and endpoint not in serving:
                reason = self.public(endpoint)
            if not reason:
                return ""
            reasons.append(f"{endpoint.name}: {reason}")
        return "; ".join(reasons)

    def only_full(self, tried: Collection[Endpoint], allowed: Collection[int] | None) -> bool:
        """Whether the request could be taken if less was in flight."""
        return any(
            e.inflight >= e.max_inflight
            and e.health.state is not HealthState.EJECTED
            and e not in tried
            and (allowed is None or e.index in allowed)
            for e in self.usable()
        )

    def why_none(self, tried: Collection[Endpoint], allowed: Collection[int] | None) -> str:
        """Why no endpoint can take a request, in words."""
        reasons = []
        for endpoint in self.endpoints:
            if allowed is not None and endpoint.index not in allowed:
                continue
            reason = self.public(endpoint)
            if endpoint in tried:
                reason = "tried already"
            elif not reason:
                reason = f"full, {endpoint.inflight} requests in flight"
            reasons.append(f"{endpoint.name}: {reason}")
        return "; ".join(reasons) or "none is allowed for this request"

    def trial(
        self, now_s: float, sent_to: Collection[Endpoint], allowed: Collection[int] | None
    ) -> Endpoint | None:
        """One that is out and due to be tried, and isn't in ``sent_to``."""
        for endpoint in self.endpoints:
            health = endpoint.health
            if (
                (health.state is HealthState.EJECTED or health.state is HealthState.BACKOFF)
                and not self._excluded(endpoint)
                and endpoint not in sent_to
                and (allowed is None or endpoint.index in allowed)
                and health.trial_due(now_s)
            ):
                return endpoint
        return None

    def fault(
        self, endpoint: Endpoint, outcome: AttemptOutcome, started_s: float, now_s: float
    ) -> bool:
        """Counts a fault; whether the endpoint is out for it."""
        reason = endpoint.health.fault(outcome, started_s)
        if not reason:
            return False
        refuses = outcome is AttemptOutcome.CONNECT
        if refuses:
            for endpoint_states, twin in self.twins.get(endpoint, ()):
                if twin.health.state is not HealthState.EJECTED:
                    endpoint_states.eject(twin, f"{reason}, by a request for another model", now_s,
                                 certain=True)  # fmt: skip
        return self.eject(endpoint, reason, now_s, certain=refuses)

    def backpressure(
        self, endpoint: Endpoint, started_s: float, now_s: float, retry_after_s: float
    ) -> None:
        """Its server said that it is full, so it is full for the other models there too."""
        for endpoint_states, one in [(self, endpoint), *self.twins.get(endpoint, ())]:
            endpoint_states.record_change(
                one, one.health.backpressure(started_s, now_s, retry_after_s)
            )
            endpoint_states.rebuild()

    def unlink(self) -> None:
        """Share nothing with other models any more."""
        for endpoint in self.endpoints:
            endpoint.twins = []
        self.twins = {}

    def eject(
        self,
        endpoint: Endpoint,
        reason: str,
        now_s: float,
        *,
        slow: bool = False,
        certain: bool = False,
    ) -> bool:
        """Takes it out unless too many are; ``certain``: nobody can be served by it anyway."""
        if not (
            certain or endpoint.health.state is HealthState.EJECTED or self._may_eject(endpoint)
        ):
            return False
        self.record_change(endpoint, endpoint.health.eject(reason, now_s, slow=slow))
        return True

    def record_change(self, endpoint: Endpoint, line: str) -> None:
        """Notes a line about a change of state, if there is one."""
        if line:
            self.lines.append(f"{endpoint.name}: {line}")
            endpoint.timings.clear()
            self.rebuild()

    def health_tick(self, now_s: float) -> None:
        for endpoint in self.endpoints:
            health: EndpointHealth = endpoint.health
            if health.state is not HealthState.HEALTHY:
                self.record_change(endpoint, health.tick(now_s))

    def _may_eject(self, endpoint: Endpoint) -> bool:
        usable = self.usable()
        out = sum(e.health.state is HealthState.EJECTED for e in usable if e is not endpoint)
        return out + 1 <= self._eject.max_share * len(usable) and out + 1 < len(usable)

    def _excluded(self, endpoint: Endpoint) -> str:
        if endpoint.signal.excluded:
            return endpoint.signal.excluded
        if endpoint.config.standby and not endpoint.promoted:
            return "standby"
        return ""


def _fitting(
    endpoints: list[Endpoint], tried: Collection[Endpoint], allowed: Collection[int] | None
) -> list[Endpoint]:
    return [
        e
        for e in endpoints
        if e.inflight < e.max_inflight
        and e not in tried
        and (allowed is None or e.index in allowed)
    ]
