"""How much retries and hedges may add to the load: a share of the requests, and a small floor.

As in "The Tail at Scale" (Dean and Barroso, CACM 2013) and Finagle's and Envoy's retry budgets.
"""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """Gains ``share`` of every unit that is asked and ``floor_per_s`` units a second; holds at
    most ``burst`` units. Units are requests or tokens."""

    __slots__ = ("_at_s", "_floor_per_s", "_left", "burst", "share")

    def __init__(self, share: float, *, floor_per_s: float, burst: float, now_s: float) -> None:
        self.share = share
        self._floor_per_s = floor_per_s
        self.burst = burst
        self._left = burst
        self._at_s = now_s

    def gain(self, units: float) -> None:
        left = self._left + self.share * units
        self._left = left if left < self.burst else self.burst

    def give_back(self, units: float) -> None:
        """What was taken was well spent."""
        self._left = min(self.burst, self._left + units)

    def take(self, units: float, now_s: float) -> bool:
        """Takes ``units`` if they are there; nothing otherwise."""
        if self.share <= 0:
            return False
        passed_s = now_s - self._at_s
        self._at_s = now_s
        self._left = min(self.burst, self._left + passed_s * self._floor_per_s)
        if self._left < units:
            return False
        self._left -= units
        return True
