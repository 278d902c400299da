"""What probes have found out about one endpoint; pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["DOWN_AFTER", "ProbeState"]

DOWN_AFTER = 3
"""Failed checks in a row after which an endpoint gets no requests; one success ends it."""
KEPT = 8
"""The least of this many round trips counts: anything above it is queueing, not distance."""


@dataclass(frozen=True, slots=True)
class ProbeState:
    """``rtts_s``: the newest round trips, the oldest first. ``problem``: why the last check
    failed, empty if it did not. All is unknown at first, which is not unhealthy."""

    rtts_s: tuple[float, ...] = ()
    rtt_at_s: float = 0.0
    failures: int = 0
    problem: str = ""
    checked_at_s: float = 0.0

    def passed(self, rtt_s: float, now_s: float) -> ProbeState:
        """After a check that went well."""
        return ProbeState(
            rtts_s=(*self.rtts_s[1 - KEPT :], rtt_s), rtt_at_s=now_s, checked_at_s=now_s
        )

    def failed(self, problem: str, now_s: float) -> ProbeState:
        """After one that did not."""
        return replace(self, failures=self.failures + 1, problem=problem, checked_at_s=now_s)

    @property
    def rtt_s(self) -> float:
        """The least of the newest round trips; 0 where none is known."""
        return min(self.rtts_s, default=0.0)

    @property
    def down(self) -> str:
        """Why it is taken for down; empty if it is not."""
        if self.failures < DOWN_AFTER:
            return ""
        return f"health checks fail: {self.problem}"

    @property
    def unready(self) -> str:
        """Why the endpoint should not be relied on: it is down, or no check has succeeded yet."""
        if self.down or self.rtts_s:
            return self.down
        return f"the first health check failed: {self.problem}" if self.problem else "not asked yet"
