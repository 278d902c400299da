"""The endpoints of one model: which one takes a request, and what is learned from how it went."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import LimitsConfig, ModelConfig
from trainmesh.serving.decide.books import Books
from trainmesh.serving.decide.choice import Choice
from trainmesh.serving.decide.demand import Demand
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.extras import Extras
from trainmesh.serving.decide.health import State
from trainmesh.serving.decide.learn import outliers
from trainmesh.serving.decide.learn.forecast import Forecast
from trainmesh.serving.decide.learn.reuse import Reuse
from trainmesh.serving.decide.learn.trend import Trend
from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.policies.guard import Guard
from trainmesh.serving.decide.policies.shadow import Versus
from trainmesh.serving.decide.roster import Roster
from trainmesh.serving.decide.shared import link
from trainmesh.serving.decide.types import (
    HASH_BITS,
    EndpointSignal,
    Facts,
    Kind,
    Outcome,
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
        old: Books | None = previous._books if previous is not None else None
        reuse = old.reuse if old is not None else Reuse()
        trend = old.trend if old is not None else Trend()
        self.demand: Demand = previous.demand if previous is not None else Demand(now_s)
        self.endpoints = _endpoints(config, reuse, previous)
        self._roster = Roster(self.endpoints, config.eject)
        if previous is not None:
            self._roster.version = previous.version + 1
        forecast = old.forecast if old is not None else Forecast()
        extras = Extras(config.retry, config.hedge, trend.tokens, now_s)
        tested = self.versus if self._share else None
        self._books: Books = Books(self._roster, reuse, trend, forecast, extras, tested)
        self._stale: Endpoint | None = None
        self._judged_s = now_s
        self.tick(now_s)

    @property
    def version(self) -> int:
        """Changes whenever ``exclusions`` does."""
        return self._roster.version

    def exclusions(self) -> Mapping[str, str]:
        """Endpoint -> why it takes no requests, whatever they are."""
        return self._roster.exclusions

    @property
    def shares(self) -> bool:
        """Whether another model is at one of its URLs, so that its capacity changes any time."""
        return any(self._roster.twins.values())

    @property
    def in_service(self) -> bool:
        """Whether any endpoint may take requests, be it at times."""
        return bool(self._roster.full or self._roster.part)

    def why_out(self) -> str:
        """Why none of the endpoints is in service; empty if one is, as far as is known."""
        serving = self._roster.full + self._roster.part
        reasons = []
        for endpoint in self.endpoints:
            reason = endpoint.signal.unready
            if not reason and endpoint not in serving:
                reason = self._roster.public(endpoint)
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
        return self._books.reuse.value.reuse

    @property
    def prefix_pays(self) -> bool:
        return self._books.reuse.value.pays

    def capacity(self) -> int:
        """Requests that this worker may have in flight: less than the configured sum where other
        workers and routers have some, or an engine says that it is full."""
        usable = self._roster.full + self._roster.part or self._roster.usable()
        return sum(e.room() for e in usable)

    def update(self, signals: Mapping[str, EndpointSignal], now_s: float) -> None:
        """Takes a new snapshot; endpoints that aren't in it keep their last signal."""
        for endpoint in self.endpoints:
            signal = signals.get(endpoint.name)
            if signal is not None:
                endpoint.see(signal, now_s)
        self._roster.rebuild()

    @staticmethod
    def share(pools: Iterable[Pool], previous: Iterable[Pool] = ()) -> None:
        """Let models at one URL share what belongs to the server behind it (``shared``).

        Args:
            pools: all of a worker.
            previous: those that ``pools`` replace.
        """
        for pool in previous:
            pool._roster.unlink()
        link([pool._roster for pool in pools])

    # Choosing

    def choose(
        self,
        facts: Facts,
        now_s: float,
        *,
        tried: Collection[Endpoint] = (),
        allowed: frozenset[int] | None = None,
    ) -> Choice:
        """Says where an attempt of a request should go.

        Args:
            facts: the request.
            now_s: monotonic seconds.
            tried: endpoints that had an attempt of it already; they get no other.
            allowed: indices of endpoints that its tenant may use; None: all.
        """
        roster = self._roster
        if tried or allowed is not None or roster.part:
            candidates = roster.takers(self._random, now_s, tried, allowed)
        else:
            candidates = [e for e in roster.full if e.inflight < e.max_inflight]
        reason = ""
        if not candidates:
            candidates = roster.last_resort(tried, allowed)
            if not candidates:
                none = self._none(roster.why_none(tried, allowed))
                none.full = roster.only_full(tried, allowed)
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
        context = self._books.context
        rows = [c.row() for c in candidates]
        scores, place = guard.score(facts, candidates, context, draw, now_s)
        chosen = candidates[place]
        choice = Choice(
            chosen,
            reason,
            guard.policy,
            draw,
            context,
            candidates,
            rows,
            scores,
            roster.exclusions,
            roster.version,
            arm,
        )
        if self._shadow is not None and not self._share:
            self._watch(self._shadow, facts, candidates, choice, now_s)
        return choice

    def trial(
        self,
        facts: Facts,
        now_s: float,
        *,
        sent_to: Collection[Endpoint] = (),
        allowed: frozenset[int] | None = None,
    ) -> Endpoint | None:
        """An endpoint that is out, or that nobody has chosen for a while, and is due to be tried
        by a copy of this request, if any. Never one that has the request already (``sent_to``),
        and only as many as the budget of tokens allows.

        The copy is to be begun with ``Kind.TRIAL``, cancelled at its first byte or after
        ``TRIAL_TIMEOUT_S`` (then it ends as ``TIMEOUT``), and its answer thrown away.
        """
        roster, extras = self._roster, self._books.extras
        if len(roster.full) < len(self.endpoints):
            out = roster.trial(now_s, sent_to, allowed)
            if out is not None and extras.may_try(facts, now_s):
                out.health.tried(now_s)
                return out
        stale = self._stale
        if stale is None or (allowed is not None and stale.index not in allowed):
            return None
        if stale in sent_to or not extras.may_try(facts, now_s):
            return None
        self._stale = None
        stale.copied_s = now_s
        return stale

    def _none(self, reason: str) -> Choice:
        roster = self._roster
        return Choice(
            None,
            reason,
            self._guard.scorer.name,
            0.0,
            self._books.context,
            (),
            (),
            (),
            roster.exclusions,
            roster.version,
            0,
        )

    def _some(self, facts: Facts, candidates: list[Endpoint]) -> list[Endpoint]:
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

    def _prepare(self, facts: Facts) -> None:
        """Makes the endpoints' fields those for this request."""
        if facts.stream != self._books.kind:
            self._books.kind = facts.stream
            self._publish()
        if facts.blocks or self._books.reuse.set:
            self._books.reuse.prepare(facts, self.endpoints)

    def _publish(self) -> None:
        kind = self._books.kind
        for endpoint in self.endpoints:
            endpoint.base_s, endpoint.s_per_token = endpoint.models[kind]

    def _watch(
        self,
        shadow: Guard,
        facts: Facts,
        candidates: list[Endpoint],
        choice: Choice,
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
        self, endpoint: Endpoint, facts: Facts, kind: Kind, now_s: float, arm: int = 0
    ) -> Attempt:
        """Counts an attempt that is being sent; ``arm`` of the choice."""
        return self._books.begin(endpoint, facts, kind, now_s, arm)

    def first_byte(self, attempt: Attempt, now_s: float) -> None:
        """The first byte of a good answer's body (2xx) is there."""
        self._books.first_byte(attempt, now_s)

    def end(
        self,
        attempt: Attempt,
        outcome: Outcome,
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
        self._books.end(attempt, outcome, now_s, output_tokens, retry_after_s)

    # More attempts

    def may_retry(self, facts: Facts, attempts: int, now_s: float) -> bool:
        """Takes a retry from the budget; ``attempts`` of the request were made."""
        return self._books.extras.may_retry(attempts, now_s)

    def may_ask_again(self, endpoint: Endpoint, status: int, attempts: int, now_s: float) -> bool:
        """Whether another endpoint may be asked about a request that ``endpoint`` refused with
        ``status`` (``client_errors``); ``attempts`` of it were made. An endpoint that has failed
        since its last good answer, or has given none since it was let in, is not believed."""
        if attempts >= self.config.retry.attempts:
            return False
        health = endpoint.health
        if health.failures or not health.proven:
            return True
        return self._books.extras.client_errors.may_ask_again(status, now_s)

    def asking_paid(self, status: int) -> None:
        """The other endpoint answered well."""
        self._books.extras.client_errors.paid(status)

    def hedge_delay_s(self, facts: Facts) -> float:
        """How long the first attempt has before a hedge; infinite: there will be none."""
        if len(self._roster.full) < 2:
            return float("inf")
        return self._books.extras.hedge_delay_s(facts)

    def may_hedge(self, facts: Facts, now_s: float) -> bool:
        """Takes a hedge from the budget."""
        return self._books.extras.may_hedge(facts, self.demand.load, now_s)

    def expected_output_tokens(self) -> int:
        """Tokens of an ordinary answer lately."""
        return int(self._books.trend.output_tokens)

    # Time

    def tick(self, now_s: float) -> list[str]:
        """What time changes; to be called every 0.1 s. Returns a line for each change of state."""
        roster = self._roster
        for endpoint in self.endpoints:
            endpoint.age(now_s)
        self._books.forecast.refresh(self.endpoints, now_s)
        self._publish()
        roster.health_tick(now_s)
        self._eject_outliers(now_s)
        self._promote(now_s)
        self._stale = self._find_stale(now_s)
        self._books.reuse.value.tick(now_s)
        self._books.extras.tick(self._books.trend.tokens, now_s)
        self._books.context = self._books.trend.context(
            self.endpoints, self.config.affinity_budget_s, self._books.reuse.value.pays
        )
        lines = [f"model {self.name}: {line}" for line in roster.lines]
        roster.lines.clear()
        for guard in (self._guard, self._shadow):
            if guard is not None and guard.line:
                lines.append(f"model {self.name}: {guard.line}")
                guard.line = ""
        return lines

    def _find_stale(self, now_s: float) -> Endpoint | None:
        """One that takes requests and gets none: what is thought of it may be wrong by now, as its
        first answers came from a cold start, or it was ill."""
        for endpoint in self._roster.full:
            asked_s = endpoint.asked_s
            if 0.0 <= asked_s <= now_s - STALE_S and endpoint.copied_s <= now_s - COPY_PERIOD_S:
                return endpoint
        return None

    def _eject_outliers(self, now_s: float) -> None:
        if now_s - self._judged_s < JUDGE_S * len(self.endpoints):
            return
        self._judged_s = now_s
        usable = self._roster.usable()
        eject = self.config.eject
        reasons = outliers.judge(
            usable, self._books.forecast.models, eject.latency_ratio, eject.samples, now_s
        )
        for endpoint, reason in zip(usable, reasons, strict=True):
            if reason and endpoint.health.state is not State.EJECTED:
                self._roster.eject(endpoint, reason, now_s, slow=True)

    def _promote(self, now_s: float) -> None:
        standbys = [e for e in self.endpoints if e.config.standby]
        if not standbys:
            inflight = sum(e.inflight for e in self.endpoints)
            self.demand.tick(inflight, sum(e.max_inflight for e in self.endpoints), 1, now_s)
            return
        inflight = sum(e.inflight for e in self.endpoints)
        ordinary = [
            e
            for e in self._roster.usable()
            if not e.config.standby and e.health.state is not State.EJECTED
        ]
        capacity = sum(e.max_inflight for e in ordinary)
        if self.demand.tick(inflight, capacity, len(ordinary), now_s):
            reason = self.demand.reason
            for endpoint in standbys:
                endpoint.promoted = bool(reason)
                word = f"standby is used: {reason}" if reason else "standby again: it is quiet"
                self._roster.told(endpoint, word)

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


def _endpoints(config: ModelConfig, reuse: Reuse, previous: Pool | None) -> tuple[Endpoint, ...]:
    old = {e.config.url: e for e in previous.endpoints} if previous is not None else {}
    endpoints = []
    for index, endpoint_config in enumerate(config.endpoints):
        endpoint = old.get(endpoint_config.url)
        if endpoint is None:
            endpoint = Endpoint(index, endpoint_config, config.eject, reuse.new_bit())
        else:
            endpoint.configure(index, endpoint_config, config.eject)
        endpoints.append(endpoint)
    return tuple(endpoints)
