"""A line of the ledger: why an attempt went where it went, and how it ended."""

from __future__ import annotations

from msgspec import Struct

from trainmesh.serving.decide.record import Decision
from trainmesh.serving.decide.types import AttemptOutcome

__all__ = ["LedgerEntry"]


class LedgerEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Written when the attempt is over. Durations are seconds since it began."""

    decision: Decision
    outcome: AttemptOutcome | None = None
    """None: no attempt was made, as no endpoint could take the request."""
    status: int = 0
    """The endpoint's; 0 where it gave none."""
    ttft_s: float | None = None
    duration_s: float = 0.0
    output_tokens: int = 0
    error: str = ""
    """What went wrong, in words."""
