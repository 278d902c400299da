"""How far executors are from their predictions, compared with each other. Pure.

A plan is compared with the previous one within seconds, on the same links. So the quotient of the
two ratios measured / predicted tells what their executors cost, however wrong the absolute
predictions are: an unknown protocol overhead or a busy machine slows both and cancels out. Native
is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from trainmesh.types import Algorithm

__all__ = ["Calibration"]

LEAST, MOST = 0.5, 4.0
KEPT = 3
"""Factors of an algorithm: one that was disturbed doesn't stay for long."""


@dataclass(frozen=True)
class Calibration:
    """Factors by which predicted times are multiplied: ``start`` until something was measured,
    then the median of the last few."""

    start: Mapping[str, float]
    _measured: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def factor(self, algorithm: str) -> float:
        if algorithm == Algorithm.NATIVE:
            return 1.0
        measured = self._measured.get(algorithm)
        return median(measured) if measured else self.start.get(algorithm, 1.0)

    @property
    def factors(self) -> dict[str, float]:
        """All that are known."""
        return {name: self.factor(name) for name in (*self.start, *self._measured)}

    def learn(
        self, before: str, before_ratio: float, after: str, after_ratio: float
    ) -> Calibration:
        """What a switch from algorithm ``before`` to ``after`` has shown; the ratios are measured
        / predicted time under each."""
        if before == after or before_ratio <= 0 or after_ratio <= 0:
            return self
        if after == Algorithm.NATIVE:
            return self._with(before, before_ratio / after_ratio)
        return self._with(after, self.factor(before) * after_ratio / before_ratio)

    def _with(self, algorithm: str, factor: float) -> Calibration:
        kept = (*self._measured.get(algorithm, ()), min(MOST, max(LEAST, factor)))[-KEPT:]
        return Calibration(self.start, {**self._measured, algorithm: kept})
