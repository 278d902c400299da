"""The decision about an attempt, as the ledger keeps it, and its replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from trainmesh.serving.decide.types import AttemptKind, Context, RequestFacts, Row, Scorer

__all__ = ["Decision", "facts_of", "replay"]


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Written when an attempt is sent: what was known, and what was chosen."""

    request_id: str
    client_id: str = ""
    """The client's x-request-id, where it sent one; several requests may have the same."""
    unix_s: float
    tenant: str = ""
    model: str
    kind: AttemptKind = AttemptKind.FIRST
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


def facts_of(decision: Decision) -> RequestFacts:
    """The request as a scorer saw it."""
    facts = RequestFacts(
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
