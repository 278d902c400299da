"""When the requests of a model that have no answer yet are sent a second time."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Protocol

__all__ = ["HedgeTimer"]


class Hedged(Protocol):
    """A request that may be sent a second time (``exchange.exchange.Exchange``)."""

    hedge_at_s: float

    @property
    def awaits_answer(self) -> bool:
        """Its client waits, and no endpoint has answered."""
        ...

    def hedge(self, now_s: float) -> None: ...


class HedgeTimer:
    """One timer for all requests of a model. They come in the order of their starts; their delays
    change slowly, so a few are hedged some milliseconds late, and none is looked at twice."""

    __slots__ = ("_loop", "_timer", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Hedged] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, hedged: Hedged) -> None:
        """Hedge it at its time if it has no answer by then."""
        self._waiting.append(hedged)
        if self._timer is None:
            self._timer = self._loop.call_at(hedged.hedge_at_s, self._due)

    def _due(self) -> None:
        self._timer = None
        now_s = monotonic()
        waiting = self._waiting
        while waiting:
            hedged = waiting[0]
            if hedged.awaits_answer:
                if hedged.hedge_at_s > now_s:
                    self._timer = self._loop.call_at(hedged.hedge_at_s, self._due)
                    return
                hedged.hedge(now_s)
            waiting.popleft()

    def close(self) -> None:
        """Hedge no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
