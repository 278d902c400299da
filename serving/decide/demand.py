"""When standby endpoints are wanted."""

from __future__ import annotations

from typing import Final

__all__ = ["Demand"]

HALF_LIFE_S: Final = 1.0
HIGH: Final = 0.8
LOW: Final = 0.4
HIGH_FOR_S: Final = 2.0
QUIET_FOR_S: Final = 60.0


class Demand:
    """Decayed load with hysteresis: standbys are wanted once it was above ``HIGH`` (or requests
    had to wait or were refused) for ``HIGH_FOR_S``, until it was below ``LOW`` for
    ``QUIET_FOR_S``; and at once when no other endpoint can take requests."""

    __slots__ = ("_at_s", "_edge_s", "_unmet", "load", "reason")

    def __init__(self, now_s: float) -> None:
        self.load = 0.0
        """What is in flight and unmet, as a share of what the ordinary endpoints hold."""
        self.reason = ""
        """Why standbys are wanted, or ""."""
        self._unmet = 0
        self._at_s = now_s
        self._edge_s = now_s

    def unmet(self, requests: int = 1) -> None:
        """Requests that had to wait or were refused."""
        self._unmet += requests

    def tick(self, inflight: int, capacity: int, usable: int, now_s: float) -> bool:
        """Whether ``reason`` appeared or went. ``capacity`` and ``usable`` (how many there are)
        are of the endpoints that aren't standbys."""
        keep = 0.5 ** ((now_s - self._at_s) / HALF_LIFE_S)
        self._at_s = now_s
        wanted = self._unmet > 0
        load = (inflight + self._unmet) / max(capacity, 1)
        self._unmet = 0
        self.load = keep * self.load + (1.0 - keep) * (max(load, 1.0) if wanted else load)
        if not usable:
            return self._want("no other endpoint can take requests", now_s)
        if not self.reason:
            if self.load <= HIGH:
                self._edge_s = now_s
            elif now_s - self._edge_s >= HIGH_FOR_S:
                return self._want(f"load was above {HIGH:.0%} for {HIGH_FOR_S:g} s", now_s)
            return False
        if self.load >= LOW:
            self._edge_s = now_s
        elif now_s - self._edge_s >= QUIET_FOR_S:
            self.reason = ""
            self._edge_s = now_s
            return True
        return False

    def _want(self, reason: str, now_s: float) -> bool:
        new = not self.reason
        self.reason = reason
        self._edge_s = now_s
        return new
