"""Time as a dependency: decisions take ``now`` from a Clock, tests turn it by hand."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Two clocks: ``monotonic_s`` for durations, ``unix_s`` for people to read."""

    def monotonic_s(self) -> float: ...

    def unix_s(self) -> float: ...


class SystemClock:
    """The host's clocks."""

    @staticmethod
    def monotonic_s() -> float:
        return time.monotonic()

    @staticmethod
    def unix_s() -> float:
        return time.time()


class ManualClock:
    """A clock that moves only by ``advance``."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def monotonic_s(self) -> float:
        return self._now_s

    def unix_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds
