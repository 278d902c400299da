"""What was decided about an attempt, as the ledger keeps it, and the decision again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from msgspec import Struct

from trainmesh.serving.decide.choice import Choice
from trainmesh.serving.decide.types import Context, Facts, Kind, Row, Scorer

__all__ = ["Decision", "facts_of", "replay"]


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Written when an attempt is sent: what was known, and what was chosen."""

    request_id: str
    unix_s: float
    tenant: str = ""
    model: str
    kind: Kind = Kind.FIRST
    policy: str
    """The one that decided: not always the configured one, see ``guard.Guard``."""
    arm: int = 0
    """1: the policy of an A/B test."""
    draw: float = 0.0
    context: Context = Context()
    rows: Sequence[Row] = ()
    """The candidates in the order in which they were scored."""
    names: Sequence[str] = ()
    """Of the endpoints in ``rows``."""
    scores: Sequence[float | None] = ()
    """None where a policy said infinity, which JSON has not."""
    chosen: str = ""
    """The endpoint's name; empty: nobody could take it."""
    reason: str = ""
    excluded: Mapping[str, str] = {}
    """Endpoint -> why it took no requests then."""
    snapshot: int = 0
    """Version of what the control process had published."""
    shadow_policy: str = ""
    shadow: str = ""
    """The endpoint that the shadow policy would have taken."""
    priority: int = 5
    stream: bool = False
    nbytes: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    session_key: int = 0
    """A hash of the session, never the session itself."""

    @classmethod
    def from_choice(
        cls, choice: Choice, facts: Facts, kind: Kind, *, unix_s: float, snapshot: int = 0
    ) -> Decision:
        """The record of a choice that was just made; copies no row."""
        endpoint = choice.endpoint
        shadow = choice.shadow
        return cls(
            request_id=facts.request_id,
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


def facts_of(decision: Decision) -> Facts:
    """The request as a scorer saw it."""
    facts = Facts(
        request_id=decision.request_id,
        model=decision.model,
        tenant=decision.tenant,
        priority=decision.priority,
        stream=decision.stream,
        nbytes=decision.nbytes,
        prompt_tokens=decision.prompt_tokens,
        output_tokens=decision.output_tokens,
    )
    facts.session_key = decision.session_key
    return facts


def replay(decision: Decision, scorer: Scorer) -> int:
    """The ``index`` of the endpoint that ``scorer`` would have chosen; -1 if nobody could take it.

    With the policy of the decision itself it is the one that was chosen then.
    """
    if not decision.rows:
        return -1
    scores = scorer.score(facts_of(decision), decision.rows, decision.context, decision.draw)
    return decision.rows[scores.index(min(scores))].index
