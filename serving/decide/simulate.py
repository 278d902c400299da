"""Drives a pool without sockets: servers, clients and faults in simulated time.

The same ``Pool`` that the proxy uses is asked and told here, so a policy can be tried on a load
before it meets one. Everything is a function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf

from trainmesh.serving.config.types import LimitsConfig, ModelConfig
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.pool import TRIAL_TIMEOUT_S, Pool
from trainmesh.serving.decide.simulated_server import Fault, SimulatedAttempt, SimulatedServer
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    EndpointSignal,
    RequestFacts,
)

__all__ = ["Done", "Fault", "SimulatedRequest", "Result", "SimulatedServer", "Simulation"]

TICK_S = 0.1


@dataclass(frozen=True)
class SimulatedRequest:
    """One request of a load, to come at ``at_s``."""

    at_s: float
    facts: RequestFacts


@dataclass(frozen=True)
class Done:
    """How a request ended for its client."""

    facts: RequestFacts
    at_s: float
    ttft_s: float
    """inf: it failed."""
    end_s: float
    endpoint: str
    attempts: int

    @property
    def ok(self) -> bool:
        return self.ttft_s < inf


@dataclass
class Result:
    """What a simulation has seen."""

    done: list[Done] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)
    """Changes of state, with their times."""
    attempts: dict[AttemptKind, int] = field(default_factory=dict)
    sent: dict[str, list[float]] = field(default_factory=dict)
    """Endpoint -> when it was sent something, trials left out."""

    @property
    def failed(self) -> int:
        return sum(not done.ok for done in self.done)

    def ttft_s(self, share: float, from_s: float = 0.0, until_s: float = inf) -> float:
        """A quantile of the clients' TTFT; failures count as infinite."""
        values = sorted(d.ttft_s for d in self.done if from_s <= d.at_s < until_s)
        return values[min(int(share * len(values)), len(values) - 1)]

    def share(self, endpoint: str, from_s: float = 0.0, until_s: float = inf) -> float:
        """Part of all attempts that one endpoint had."""
        counts = {
            name: sum(from_s <= at_s < until_s for at_s in times)
            for name, times in self.sent.items()
        }
        return counts.get(endpoint, 0) / max(sum(counts.values()), 1)


class _Exchange:
    """A request on its way."""

    def __init__(self, facts: RequestFacts, at_s: float, then: Callable[[], None] | None) -> None:
        self.facts = facts
        self.at_s = at_s
        self.then = then
        self.tried: list[Endpoint] = []
        self.live: list[Attempt] = []
        self.won = False
        self.over = False


class Simulation:
    """A pool, its servers, and a heap of what happens next.

    Args:
        config: the model; one server for each endpoint, in order.
        servers: how they behave.
        seed: of all chance.
        signals: what the control process would say.
    """

    def __init__(
        self,
        config: ModelConfig,
        servers: Sequence[SimulatedServer],
        *,
        seed: int = 0,
        signals: Iterable[EndpointSignal] = (),
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - a simulation's chance, no secret
        scorers, _ = load_scorers()
        self.pool = Pool(
            "m", config, limits=LimitsConfig(), scorers=scorers, rng=self.rng, now_s=0.0,
            clock=lambda: 0.0,
        )  # fmt: skip
        self.pool.update({signal.name: signal for signal in signals}, 0.0)
        self.servers = list(servers)
        self.now_s = 0.0
        self.result = Result()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._tick()

    def at(self, at_s: float, do: Callable[[], None]) -> None:
        """Has ``do`` called at a simulated time."""
        heappush(self._heap, (at_s, next(self._order), do))

    def load(self, requests: Iterable[SimulatedRequest]) -> None:
        """Requests that come whatever happens to others (an open loop)."""
        for request in requests:
            self.at(request.at_s, partial(self.send, request.facts))

    def clients(self, number: int, make: Callable[[int], RequestFacts]) -> None:
        """Clients that send their next request when the last one is over (a closed loop)."""
        numbers = count()

        def again() -> None:
            self.send(make(next(numbers)), again)

        for client in range(number):
            self.at(client * 1e-4, again)

    def run(self, until_s: float) -> Result:
        """Goes on until a simulated time; may be called again."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now_s, _, do = heappop(self._heap)
            do()
        self.now_s = until_s
        return self.result

    def send(self, facts: RequestFacts, then: Callable[[], None] | None = None) -> None:
        """A client sends a request now."""
        exchange = _Exchange(facts, self.now_s, then)
        if not self._attempt(exchange, AttemptKind.FIRST):
            self._over(exchange, inf, "")
            return
        delay_s = self.pool.hedge_delay_s(facts)
        if delay_s < inf:
            self.at(self.now_s + delay_s, lambda: self._hedge(exchange))
        if trial := self.pool.trial(facts, self.now_s, sent_to=exchange.tried):
            self._trial(trial, facts)

    def _tick(self) -> None:
        self.result.lines += [(self.now_s, line) for line in self.pool.tick(self.now_s)]
        self.at(self.now_s + TICK_S, self._tick)

    def _attempt(self, exchange: _Exchange, kind: AttemptKind) -> bool:
        choice = self.pool.choose(exchange.facts, self.now_s, tried=exchange.tried)
        endpoint = choice.endpoint
        if endpoint is None:
            return False
        exchange.tried.append(endpoint)
        attempt = self.pool.begin(endpoint, exchange.facts, kind, self.now_s, choice.arm)
        exchange.live.append(attempt)
        self.result.attempts[kind] = self.result.attempts.get(kind, 0) + 1
        self.result.sent.setdefault(endpoint.name, []).append(self.now_s)
        server = self.servers[endpoint.index]
        bad = server.fails_at_once(self.now_s)
        if bad is not None:
            outcome, after_s = bad
            self.at(self.now_s + after_s, lambda: self._failed(exchange, attempt, outcome))
            return True
        self._submit(server, SimulatedAttempt(attempt, lambda: self._first_byte(exchange, attempt)))
        return True

    def _submit(self, server: SimulatedServer, job: SimulatedAttempt) -> None:
        if server.serial:
            server.queue.append(job)
            if server.queue[0] is not job:
                return
        self._read(server, job)

    def _read(self, server: SimulatedServer, job: SimulatedAttempt) -> None:
        """The server begins with a prompt."""
        took_s = server.prefill_s(job.attempt.facts, self.now_s, self.rng)
        if took_s < inf:
            self.at(self.now_s + took_s, lambda: self._was_read(server, job))

    def _was_read(self, server: SimulatedServer, job: SimulatedAttempt) -> None:
        if not job.attempt.ended:
            self.at(self.now_s + server.rtt_s, job.then)
        if server.serial and server.queue and server.queue[0] is job:
            server.queue.popleft()
            self._next(server)

    def _next(self, server: SimulatedServer) -> None:
        while server.queue and server.queue[0].attempt.ended:
            server.queue.popleft()
        if server.queue:
            self._read(server, server.queue[0])

    def _cancel(self, attempt: Attempt) -> None:
        """Its client or another attempt doesn't need it any more."""
        self._end_early(attempt, AttemptOutcome.CANCELLED)

    def _end_early(self, attempt: Attempt, outcome: AttemptOutcome) -> None:
        self.pool.end(attempt, outcome, self.now_s)
        server = self.servers[attempt.endpoint.index]
        if server.queue and server.queue[0].attempt is attempt:
            self._next(server)

    def _first_byte(self, exchange: _Exchange, attempt: Attempt) -> None:
        if attempt.ended or exchange.won:
            return
        if self.servers[attempt.endpoint.index].fails_at_once(self.now_s) == (
            AttemptOutcome.CONNECT,
            0.0,
        ):
            self._failed(exchange, attempt, AttemptOutcome.RESET)
            return
        exchange.won = True
        self.pool.first_byte(attempt, self.now_s)
        for other in exchange.live:
            if other is not attempt:
                self._cancel(other)
        ttft_s = self.now_s - exchange.at_s
        server = self.servers[attempt.endpoint.index]
        end_s = self.now_s + server.s_per_output_token * exchange.facts.output_tokens
        self.at(end_s, lambda: self._finished(exchange, attempt, ttft_s))

    def _finished(self, exchange: _Exchange, attempt: Attempt, ttft_s: float) -> None:
        self.servers[attempt.endpoint.index].served += 1
        self.pool.end(attempt, AttemptOutcome.OK, self.now_s, exchange.facts.output_tokens)
        self._over(exchange, ttft_s, attempt.endpoint.name)

    def _failed(self, exchange: _Exchange, attempt: Attempt, outcome: AttemptOutcome) -> None:
        if attempt.ended:
            return
        self.pool.end(attempt, outcome, self.now_s)
        exchange.live.remove(attempt)
        if exchange.won or exchange.live or exchange.over:
            return
        if self.pool.may_retry(exchange.facts, len(exchange.tried), self.now_s) and self._attempt(
            exchange, AttemptKind.RETRY
        ):
            return
        self._over(exchange, inf, "")

    def _hedge(self, exchange: _Exchange) -> None:
        if exchange.won or exchange.over or not exchange.live:
            return
        if self.pool.may_hedge(exchange.facts, self.now_s):
            self._attempt(exchange, AttemptKind.HEDGE)

    def _trial(self, endpoint: Endpoint, facts: RequestFacts) -> None:
        attempt = self.pool.begin(endpoint, facts, AttemptKind.TRIAL, self.now_s)
        self.result.attempts[AttemptKind.TRIAL] = self.result.attempts.get(AttemptKind.TRIAL, 0) + 1
        server = self.servers[endpoint.index]
        bad = server.fails_at_once(self.now_s)
        if bad is not None:
            outcome, after_s = bad
            self.at(self.now_s + after_s, lambda: self.pool.end(attempt, outcome, self.now_s))
            return
        self._submit(server, SimulatedAttempt(attempt, lambda: self._trial_good(attempt)))
        self.at(self.now_s + TRIAL_TIMEOUT_S, lambda: self._trial_late(attempt))

    def _trial_late(self, attempt: Attempt) -> None:
        if not attempt.ended:
            self._end_early(attempt, AttemptOutcome.TIMEOUT)

    def _trial_good(self, attempt: Attempt) -> None:
        self.pool.first_byte(attempt, self.now_s)
        self.pool.end(attempt, AttemptOutcome.OK, self.now_s)

    def _over(self, exchange: _Exchange, ttft_s: float, endpoint: str) -> None:
        exchange.over = True
        self.result.done.append(
            Done(exchange.facts, exchange.at_s, ttft_s, self.now_s, endpoint, len(exchange.tried))
        )
        if exchange.then is not None:
            self.at(self.now_s + (1e-3 if ttft_s == inf else 0.0), exchange.then)
