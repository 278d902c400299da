"""What a pool said about one attempt of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.types import Context, Row

__all__ = ["RoutingChoice"]


class RoutingChoice:
    """Enough to write a line of the ledger, and to decide again the same way."""

    __slots__ = (
        "arm",
        "candidates",
        "context",
        "draw",
        "endpoint",
        "excluded",
        "full",
        "policy",
        "reason",
        "rows",
        "scores",
        "shadow",
        "shadow_policy",
        "version",
    )

    def __init__(
        self,
        endpoint: Endpoint | None,
        reason: str,
        policy: str,
        draw: float,
        context: Context,
        candidates: Sequence[Endpoint],
        rows: Sequence[Row],
        scores: Sequence[float],
        excluded: Mapping[str, str],
        version: int,
        arm: int,
    ) -> None:
        self.endpoint = endpoint
        """None: no endpoint may take it now; ``reason`` says why."""
        self.reason = reason
        """Empty for an ordinary choice."""
        self.policy = policy
        self.draw = draw
        self.context = context
        self.candidates = candidates
        """In the order in which they were scored."""
        self.rows = rows
        """The candidates as they were then."""
        self.scores = scores
        self.excluded = excluded
        """Endpoint -> why it was no candidate for any request (``Pool.exclusions``)."""
        self.version = version
        self.arm = arm
        """1: the policy of an A/B test decided."""
        self.full = False
        """Without an endpoint: one would take it if it had less in flight."""
        self.shadow_policy = ""
        self.shadow: Endpoint | None = None
        """What the shadow policy would have taken."""
