"""The user's settings, and how much evidence a decision needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trainmesh.job_settings import AUTO, MARGIN, NO_CODEC
from trainmesh.types import Algorithm

__all__ = ["AUTO", "NO_CODEC", "Knob", "Settings"]


class Knob(StrEnum):
    """What a hint sets."""

    PLAN = "plan"
    FUSION = "fusion"
    CODEC = "codec"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """``margin``: predicted gain below which nothing is changed. ``only``: the one algorithm to
    use (None: the best). ``fusion_bytes``: None is found out, 0 is off. ``compression``: a codec,
    ``"none"`` or ``"auto"``.

    ``min_steps`` trades a quick decision against noise: a median over that many steps.
    A plan is taken back if a step's buckets take ``harm_ratio`` times as long as before, or if the
    step waits longer by the share ``harm_share`` of itself; both must be above the noise of a
    shared machine.

    A link is suspected when ``change_steps`` steps in a row take ``change_ratio`` times as long as
    they used to, or that much less. Routine probes take at most the share ``probe_share`` of the
    time, and with the urgent ones it is about 0.5 %; a message of one takes about
    ``probe_transfer_s`` on the slowest link. Plans change at most every ``min_plan_s``.
    """

    margin: float = MARGIN
    only: str | None = None
    fusion_bytes: int | None = None
    compression: str = NO_CODEC
    min_steps: int = 16
    harm_ratio: float = 1.25
    harm_share: float = 0.1
    change_ratio: float = 1.25
    change_steps: int = 8
    probe_share: float = 0.004
    probe_transfer_s: float = 0.03
    min_plan_s: float = 5.0

    @property
    def plans_matter(self) -> bool:
        """Whether any plan but native may be used. If not, links need not be known."""
        return self.only != Algorithm.NATIVE

    @property
    def finds_fusion(self) -> bool:
        """Whether the fusion size is found automatically. A job that asks for native keeps DDP's
        own buckets, because with three ranks or more sums of other buckets differ in their last
        bits."""
        return self.fusion_bytes is None and self.plans_matter
