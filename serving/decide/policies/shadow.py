"""One policy beside another: would it have chosen the same, and is it better?"""

from __future__ import annotations

__all__ = ["Versus"]


class Versus:
    """Counts of a shadow policy or an A/B test.

    In an A/B test each TTFT of one arm is compared with the last one of the other, both as ratios
    to what the pool would take for such a prompt: ``wins / (wins + losses)`` estimates the
    probability that the other policy is faster (the statistic of Mann and Whitney, 1947). A
    shadow that only watches wins where the expected TTFT of its choice is less.
    """

    __slots__ = ("_last", "answered", "compared", "losses", "same", "ttft_sums_s", "wins")

    def __init__(self) -> None:
        self.compared = 0
        self.same = 0
        self.wins = 0
        self.losses = 0
        self.answered = [0, 0]
        """First bytes of the ordinary policy, of the other."""
        self.ttft_sums_s = [0.0, 0.0]
        self._last = [0.0, 0.0]

    @property
    def win_rate(self) -> float:
        """In [0, 1]; 0.5 while nothing is known."""
        judged = self.wins + self.losses
        return self.wins / judged if judged else 0.5

    def watched(self, chosen_s: float, other_s: float, same: bool) -> None:
        """Expected TTFTs of what was chosen and of what the shadow would have."""
        self.compared += 1
        if same:
            self.same += 1
        elif other_s < chosen_s:
            self.wins += 1
        else:
            self.losses += 1

    def first_byte(self, arm: int, ttft_s: float, ratio: float) -> None:
        """A measured TTFT of an A/B test; ``ratio`` > 0 to the one expected of the pool."""
        self.answered[arm] += 1
        self.ttft_sums_s[arm] += ttft_s
        self._last[arm] = ratio
        other = self._last[1 - arm]
        if not other:
            return
        self.compared += 1
        if (ratio < other) == (arm == 1):
            self.wins += 1
        else:
            self.losses += 1
