"""When to probe, and when a probe's reports are complete. Time is an argument."""

from __future__ import annotations

import math
from collections.abc import Iterable

from trainmesh.coordinator.tuning.change_detection import gap_s, probe_bytes, probe_s
from trainmesh.coordinator.tuning.link_state import Links
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.types import PairTime

__all__ = ["ProbeSchedule"]

PATIENCE_S = 15.0
"""For the reports of a probe, once all ranks have switched."""


class ProbeSchedule:
    """The probes of one job."""

    def __init__(self, settings: Settings, links: Links) -> None:
        self._settings = settings
        self._links = links
        self._pairs: dict[tuple[int, int], PairTime] = {}
        self._epoch = 0
        self._until_s = math.inf
        self._last_s = -math.inf
        self._took_s = 0.0
        self._last_nbytes = 1
        self.in_vain = 0
        """How many probes in a row found nothing new."""
        self._is_refused = False

    @property
    def is_possible(self) -> bool:
        """Whether probes are of any use to this job."""
        return self._settings.plans_matter and self._links.can_be_probed and not self._is_refused

    @property
    def nbytes(self) -> int:
        """Size of a probe's messages."""
        return probe_bytes(self._links.slowest_bytes_per_s, self._settings)

    def is_due(self, now_s: float, *, urgent: bool) -> bool:
        """Whether the budget allows a probe; sooner, if it is ``urgent``: there is a reason to
        believe that it will find something."""
        next_s = self._took_s * min(1.0, self.nbytes / self._last_nbytes)
        gap = gap_s(next_s, self._settings, urgent=urgent, in_vain=self.in_vain)
        return self.is_possible and now_s >= self._last_s + gap

    def block(self) -> None:
        """The ranks can't probe: never ask again."""
        self._is_refused = True

    def begin(self, epoch: int, now_s: float) -> None:
        """All ranks have switched to ``epoch`` and measure now."""
        if epoch != self._epoch:
            self._pairs.clear()
        self._epoch = epoch
        self._until_s = now_s + PATIENCE_S
        self._last_s = now_s

    def add(self, pairs: Iterable[PairTime]) -> None:
        """Take reports of ranks. A probe's reports may come before its start is known here."""
        for pair in pairs:
            if pair.epoch > self._epoch:
                self._epoch = pair.epoch
                self._pairs.clear()
            if pair.epoch == self._epoch:
                self._pairs[pair.src, pair.dst] = pair

    def is_over(self, now_s: float) -> bool:
        """All reports are there, or no more are waited for."""
        count = self._links.num_probing
        return len(self._pairs) >= count * (count - 1) or now_s >= self._until_s

    def finish(self) -> str | None:
        """Take the measurements.

        Returns:
            What is new about the links, in words; empty if nothing is, None if no report came.
        """
        pairs = list(self._pairs.values())
        words = self._links.probe(pairs) if pairs else ""
        if pairs:
            self._took_s, self._last_nbytes = probe_s(pairs), pairs[0].nbytes
        self.in_vain = 0 if words else self.in_vain + 1
        return words if pairs else None
