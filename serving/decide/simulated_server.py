"""An engine in simulated time, and what may be wrong with it."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from trainmesh.serving.decide.endpoint import Attempt
from trainmesh.serving.decide.types import AttemptOutcome, RequestFacts

__all__ = ["Fault", "SimulatedAttempt", "SimulatedServer"]


@dataclass(frozen=True)
class Fault:
    """From ``from_s`` until ``until_s`` a server is ``refuse`` (connection refused), ``hang`` (it
    goes on when the fault is over), ``full`` (503), ``error`` (500) or ``slow`` by ``extra_s``."""

    what: str
    from_s: float
    until_s: float = inf
    extra_s: float = 0.0


@dataclass(eq=False)
class SimulatedAttempt:
    """An attempt at its server; ``then`` is called with the first byte."""

    attempt: Attempt
    then: Callable[[], None]


@dataclass
class SimulatedServer:
    """An engine: prompts one after the other, answers beside each other.

    Prompt tokens that are in the prefix cache take no time; ``jitter`` is the relative standard
    deviation of every duration. What is cancelled takes no more time.
    """

    base_s: float = 0.005
    s_per_token: float = 0.0
    s_per_output_token: float = 0.0
    rtt_s: float = 0.0
    cache_blocks: int = 0
    jitter: float = 0.0
    faults: Sequence[Fault] = ()
    serial: bool = True
    """Prompts wait for each other."""
    served: int = 0
    queue: deque[SimulatedAttempt] = field(default_factory=deque)
    """Prompts that wait, the one that is being read first."""
    _cache: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def fault(self, now_s: float) -> Fault | None:
        for fault in self.faults:
            if fault.from_s <= now_s < fault.until_s:
                return fault
        return None

    def prefill_s(self, facts: RequestFacts, now_s: float, rng: random.Random) -> float:
        """How long the prompt takes if it is begun now."""
        uncached = facts.prompt_tokens - self._cached(facts)
        noise = max(0.1, rng.gauss(1.0, self.jitter)) if self.jitter else 1.0
        fault = self.fault(now_s)
        extra_s = 0.0
        if fault is not None:
            extra_s = fault.until_s - now_s if fault.what == "hang" else fault.extra_s
        return (self.base_s + self.s_per_token * uncached) * noise + extra_s

    def _cached(self, facts: RequestFacts) -> int:
        hits = 0
        for block in facts.blocks:
            if block not in self._cache:
                break
            hits += 1
        if self.cache_blocks:
            for block in facts.blocks:
                self._cache[block] = None
                self._cache.move_to_end(block)
            while len(self._cache) > self.cache_blocks:
                self._cache.popitem(last=False)
        return min(hits * 128, facts.prompt_tokens)

    def fails_at_once(self, now_s: float) -> tuple[AttemptOutcome, float] | None:
        """How it fails if it is faulty now in such a way, and after what time."""
        fault = self.fault(now_s)
        return _AT_ONCE.get(fault.what) if fault is not None else None


_AT_ONCE = {
    "refuse": (AttemptOutcome.CONNECT, 0.0),
    "full": (AttemptOutcome.BACKPRESSURE, 1e-3),
    "error": (AttemptOutcome.STATUS, 1e-3),
}
