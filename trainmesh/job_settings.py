"""What a user asks of a job: one record from the command line to the coordinator, and the home of
each default."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.types import Natural

__all__ = ["AUTO", "CADENCE", "ENV_SETTINGS", "MARGIN", "NO_CODEC", "JobSettings"]

ENV_SETTINGS = "TRAINMESH_SETTINGS"
"""The record as JSON, from the launcher to the processes that it starts."""
AUTO = "auto"
"""For a plan, a fusion size or a codec: the best is found out."""
NO_CODEC = "none"
MARGIN = 0.05
"""Predicted gain below which a plan is not changed, as a share: predictions are not better."""
CADENCE = 16
"""Steps between two agreements of the ranks: a small all-reduce each, which must cost nothing."""


class JobSettings(Struct, frozen=True, kw_only=True):
    """``only``: the one algorithm to use (None: the best). ``margin``: predicted gain below which
    nothing is changed. ``fusion_bytes``: None is found out, 0 is off. ``compression``: a codec,
    ``"none"`` or ``"auto"``."""

    only: str | None = None
    margin: Annotated[float, Meta(ge=0, le=1)] = MARGIN
    fusion_bytes: Natural | None = None
    compression: str = NO_CODEC
