"""What an operator is told while a router starts: which endpoints it waits for, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from trainmesh.serving.config.types import Config
from trainmesh.serving.signals.probe_state import ProbeState
from trainmesh.units import count, duration

__all__ = ["Startup"]

FIRST_S = 1.5
"""Endpoints that answer by then are not mentioned: the first checks take a second."""
AGAIN_S = 30.0
"""Between two lines while nothing changes: engines load their weights for minutes."""
MAX_NAMED = 5


class Startup:
    """Tells how many endpoints have answered a first health check, until all have."""

    def __init__(self, now_s: float) -> None:
        self._began_s = self._said_s = now_s
        self._waited_for: frozenset[str] = frozenset()
        self._said = False
        self.over = False
        """Nothing more will be said."""

    def look(self, config: Config, probe_states: Mapping[str, ProbeState], now_s: float) -> str:
        """A line for the operator, or "".

        Args:
            config: whose endpoints are waited for.
            probe_states: what health checks have found, by URL.
            now_s: monotonic seconds.
        """
        if self.over or now_s - self._began_s < FIRST_S:
            return ""
        names = {one.url: one.name for model in config.models.values() for one in model.endpoints}
        awaited = frozenset(
            url for url in names if not _answers(probe_states.get(url, ProbeState()))
        )
        if not awaited:
            self.over = True
            took = duration(now_s - self._began_s)
            return f"all endpoints answer, after {took}" if self._said else ""
        if self._said and awaited == self._waited_for and now_s - self._said_s < AGAIN_S:
            return ""
        self._said, self._said_s, self._waited_for = True, now_s, awaited
        shown = [
            f"{name} ({probe_states.get(url, ProbeState()).problem or 'not asked yet'})"
            for url, name in names.items()
            if url in awaited
        ]
        more = f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else ""
        return (
            f"waiting for {len(awaited)} of {count(len(names), 'endpoint')}: "
            f"{', '.join(shown[:MAX_NAMED])}{more}"
        )


def _answers(probe_state: ProbeState) -> bool:
    return bool(probe_state.checked_at_s) and not probe_state.problem
