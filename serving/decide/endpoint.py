"""One endpoint as a worker sees it: its configuration, its attempts in flight, its expected
times."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple
from urllib.parse import urlsplit

from trainmesh.serving.config.types import EjectConfig, EndpointConfig
from trainmesh.serving.decide.health import EndpointHealth
from trainmesh.serving.decide.learn.estimate import DEFAULT_S_PER_TOKEN, Speed
from trainmesh.serving.decide.record import Decision
from trainmesh.serving.decide.types import (
    NEVER_S,
    AttemptKind,
    EndpointSignal,
    RequestFacts,
    Row,
    stable_hash,
)

__all__ = ["NOT_SLOW", "Attempt", "Endpoint", "Limits", "Timing"]

Limits = tuple[float, float]
"""A TTFT over the one expected of the pool: what is slow, and what is usual."""

NOT_SLOW: tuple[Limits, Limits] = ((inf, 0.0), (inf, 0.0))


class Timing(NamedTuple):
    """One TTFT, without the network and at the endpoint's nominal rate."""

    ttft_s: float
    prompt_tokens: int
    work_tokens: float
    stream: bool
    at_s: float


class Endpoint:
    """Live and mutable; a ``Candidate``. Only its pool and the proxy's counters change it."""

    __slots__ = (
        "_others_inflight",
        "_others_tokens",
        "_others_waiting_tokens",
        "asked_s",
        "base_s",
        "bandwidth_bytes_per_s",
        "bit",
        "cached_tokens",
        "config",
        "copied_s",
        "derate",
        "health",
        "index",
        "inflight",
        "inflight_tokens",
        "key",
        "kv_use",
        "max_inflight",
        "models",
        "name",
        "own_inflight",
        "own_tokens",
        "own_waiting_tokens",
        "promoted",
        "queued",
        "report_age_s",
        "rtt_s",
        "running",
        "s_per_token",
        "signal",
        "slow_above",
        "speeds",
        "timings",
        "twins",
        "unanswered",
        "waiting_tokens",
        "weight",
    )

    def __init__(self, index: int, config: EndpointConfig, eject: EjectConfig, bit: int) -> None:
        self.health = EndpointHealth(eject)
        self.bit = bit
        """Its mask in the prefix index."""
        self.own_inflight = 0
        self.own_tokens = 0
        self.own_waiting_tokens = 0
        self._others_inflight = 0
        self._others_tokens = 0
        self._others_waiting_tokens = 0
        self.inflight = 0
        self.inflight_tokens = 0
        self.waiting_tokens = 0
        self.cached_tokens = 0
        self.base_s = 0.0
        self.s_per_token = DEFAULT_S_PER_TOKEN
        self.speeds = (Speed(), Speed())
        """Of answers in one piece, of streams."""
        self.models = [(0.0, DEFAULT_S_PER_TOKEN), (0.0, DEFAULT_S_PER_TOKEN)]
        """(base_s, s_per_token) that choices go by, for each kind."""
        self.timings: deque[tuple[float, int, float, bool, float]] = deque(maxlen=4 * eject.samples)
        """Fields of ``Timing``, the newest last: a plain tuple is made in a fifth of the time."""
        self.slow_above = NOT_SLOW
        """By the prompt, and by the work before the first byte; see ``outliers``."""
        self.unanswered: dict[Attempt, None] = {}
        """Attempts without a first byte, the oldest first."""
        self.twins: list[Endpoint] = []
        """Those of other models at its URL (``shared``): what they have in flight is in flight
        here too."""
        self.promoted = False
        self.asked_s = -1.0
        """When it was last sent a request that was no trial; -1: never."""
        self.copied_s = float("-inf")
        """When it was last tried though it is well."""
        self.configure(index, config, eject)
        self.see(EndpointSignal(name=self.name), 0.0)

    def configure(self, index: int, config: EndpointConfig, eject: EjectConfig) -> None:
        """Takes another place or configuration after a reload."""
        self.index = index
        self.config = config
        self.name = config.name or urlsplit(config.url).netloc
        self.key = stable_hash(self.name.encode()) >> 31
        self.weight = config.weight
        self.max_inflight = config.max_inflight
        self.health.configure(eject)
        self.timings = deque(self.timings, maxlen=4 * eject.samples)

    def see(self, signal: EndpointSignal, now_s: float) -> None:
        """Takes what the control process says of it."""
        self.signal = signal
        self.rtt_s = signal.rtt_s
        self.bandwidth_bytes_per_s = signal.bandwidth_bytes_per_s
        self.derate = min(max(signal.derate, 0.01), 1.0)
        self.queued = signal.queued
        self.running = signal.running
        self.kv_use = signal.kv_use
        self.age(now_s)
        self.sum()

    def age(self, now_s: float) -> None:
        at_s = self.signal.reported_at_s
        self.report_age_s = max(0.0, now_s - at_s) if at_s else NEVER_S

    def sum(self) -> None:
        """Adds up what this worker, the others and other routers have in flight."""
        signal = self.signal
        self.inflight = self.own_inflight + self._others_inflight + signal.others_inflight
        self.inflight_tokens = self.own_tokens + self._others_tokens + signal.others_tokens
        self.waiting_tokens = self.own_waiting_tokens + self._others_waiting_tokens
        for twin in self.twins:
            self.inflight += twin.own_inflight
            self.inflight_tokens += twin.own_tokens
            self.waiting_tokens += twin.own_waiting_tokens

    def count(self, requests: int, tokens: int, waiting_tokens: int) -> None:
        """Counts what this worker has in flight in, or out where it is negative."""
        self.own_inflight += requests
        self.own_tokens += tokens
        self.own_waiting_tokens += waiting_tokens
        self._also(requests, tokens, waiting_tokens)
        for twin in self.twins:
            twin._also(requests, tokens, waiting_tokens)

    def _also(self, requests: int, tokens: int, waiting_tokens: int) -> None:
        self.inflight += requests
        self.inflight_tokens += tokens
        self.waiting_tokens += waiting_tokens

    def row(self) -> Row:
        """What a scorer sees of it, fixed."""
        return Row(
            self.index, self.key, self.weight, self.rtt_s, self.bandwidth_bytes_per_s,
            self.derate, self.inflight, self.inflight_tokens, self.waiting_tokens, self.base_s,
            self.s_per_token, self.cached_tokens, self.queued, self.running, self.kv_use,
            self.report_age_s,
        )  # fmt: skip

    def forget_speed(self) -> None:
        """The endpoint was slow and is well again; what was learned meanwhile is useless."""
        self.speeds = (Speed(), Speed())
        self.timings.clear()

    def set_others(self, inflight: int, tokens: int, waiting_tokens: int = 0) -> None:
        """What this router's other workers have in flight here, for all models at its URL."""
        self._others_inflight = inflight
        self._others_tokens = tokens
        self._others_waiting_tokens = waiting_tokens
        self.sum()

    @property
    def others_inflight(self) -> int:
        return self._others_inflight

    @others_inflight.setter
    def others_inflight(self, inflight: int) -> None:
        self.set_others(inflight, self._others_tokens, self._others_waiting_tokens)

    @property
    def others_tokens(self) -> int:
        return self._others_tokens

    @others_tokens.setter
    def others_tokens(self, tokens: int) -> None:
        self.set_others(self._others_inflight, tokens, self._others_waiting_tokens)

    @property
    def saturated(self) -> bool:
        """Whether the engine itself says, not long ago, that it can't hold more."""
        return self.report_age_s < 5.0 and (self.kv_use > 0.95 or self.queued > self.running + 8)

    def room(self) -> int:
        """Requests that this worker may have here in all."""
        if self.saturated:
            return self.own_inflight
        others = self.inflight - self.own_inflight
        return max(0, self.max_inflight - others)


class Attempt:
    """One try of a request at one endpoint; made by ``Pool.begin``."""

    __slots__ = (
        "arm",
        "cached_tokens",
        "confirmed",
        "decision",
        "endpoint",
        "ended",
        "facts",
        "first_byte_s",
        "full_work_tokens",
        "kind",
        "prompt_tokens",
        "started_s",
        "tokens",
        "work_tokens",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        facts: RequestFacts,
        kind: AttemptKind,
        started_s: float,
        cached_tokens: int,
        full_work_tokens: float,
        work_tokens: float,
        arm: int,
    ) -> None:
        self.endpoint = endpoint
        self.facts = facts
        self.kind = kind
        self.started_s = started_s
        self.prompt_tokens = facts.prompt_tokens
        self.tokens = facts.prompt_tokens + facts.output_tokens
        self.cached_tokens = cached_tokens
        """Of the prompt, probably in the endpoint's prefix cache."""
        self.full_work_tokens = full_work_tokens
        """The endpoint's work before this attempt's first byte, including its own prompt."""
        self.work_tokens = work_tokens
        """The same without what is cached, where going by that pays."""
        self.arm = arm
        """1: the policy of an A/B test chose, 0: the ordinary one."""
        self.first_byte_s = 0.0
        self.confirmed = False
        """A client error: no other endpoint answers the request any better, or there is none."""
        self.ended = False
        self.decision: Decision | None = None
        """Kept here by whoever writes a ledger, until the attempt has ended."""
