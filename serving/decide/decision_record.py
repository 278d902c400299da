"""Writes a choice down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.record import Decision
from trainmesh.serving.decide.types import AttemptKind, RequestFacts

__all__ = ["decision_of"]


def decision_of(
    choice: RoutingChoice,
    facts: RequestFacts,
    kind: AttemptKind,
    *,
    unix_s: float,
    snapshot: int = 0,
) -> Decision:
    """The record of a choice that was just made; copies no row."""
    endpoint = choice.endpoint
    shadow = choice.shadow
    return Decision(
        request_id=facts.request_id,
        client_id=facts.client_id,
        unix_s=unix_s,
        tenant=facts.tenant,
        model=facts.model,
        kind=kind,
        policy=choice.policy,
        arm=choice.arm,
        draw=choice.draw,
        context=choice.context,
        rows=choice.rows,
        names=[e.name for e in choice.candidates],
        scores=cast("Sequence[float | None]", choice.scores),
        chosen=endpoint.name if endpoint is not None else "",
        reason=choice.reason,
        excluded=choice.excluded,
        snapshot=snapshot,
        shadow_policy=choice.shadow_policy,
        shadow=shadow.name if shadow is not None else "",
        priority=facts.priority,
        stream=facts.stream,
        nbytes=facts.nbytes,
        prompt_tokens=facts.prompt_tokens,
        output_tokens=facts.output_tokens,
        session_key=facts.session_key,
    )
