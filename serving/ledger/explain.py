"""Why a request went where it went, from its entries; pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec import Struct
from msgspec.structs import replace

from trainmesh.serving.decide.policies.cost import expected_ttfts_s, network_s
from trainmesh.serving.decide.record import Decision, facts_of
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome, Context, RequestFacts, Row
from trainmesh.serving.ledger.entry import LedgerEntry
from trainmesh.units import count, duration

__all__ = ["AttemptStory", "Terms", "attempts_of", "terms_of", "words"]


class Terms(Struct, frozen=True, kw_only=True):
    """The expected time to one candidate's first byte, in seconds, split into the terms of
    ``decide.cost``. ``score`` is the policy's (lower is better); None: the policy ruled the
    candidate out."""

    endpoint: str
    rtt_s: float
    transfer_s: float
    waiting_s: float
    """Behind the work of others."""
    own_s: float
    """Its own prompt, and what the endpoint takes at least."""
    total_s: float
    score: float | None
    inflight: int
    cached_tokens: int
    chosen: bool


class AttemptStory(Struct, frozen=True, kw_only=True):
    """One attempt, with its candidates' terms, best first."""

    entry: LedgerEntry
    candidates: tuple[Terms, ...]


def attempts_of(entries: Iterable[LedgerEntry]) -> list[AttemptStory]:
    """The attempts of one request in the order in which they began."""
    ordered = sorted(entries, key=lambda entry: entry.decision.unix_s)
    return [AttemptStory(entry=each, candidates=terms_of(each.decision)) for each in ordered]


def terms_of(decision: Decision) -> tuple[Terms, ...]:
    """Every candidate's terms, the least total first."""
    facts, context = facts_of(decision), decision.context
    rows = zip(decision.rows, decision.names, decision.scores, strict=False)
    found = [_terms(facts, context, row, name, score, decision) for row, name, score in rows]
    return tuple(sorted(found, key=lambda terms: terms.total_s))


def _terms(
    facts: RequestFacts,
    context: Context,
    row: Row,
    name: str,
    score: float | None,
    decision: Decision,
) -> Terms:
    idle = replace(row, inflight=0, inflight_tokens=0, waiting_tokens=0, queued=0)
    total_s, idle_s = expected_ttfts_s(facts, (row, idle), context, cache=context.prefix_pays)
    transfer_s = network_s(row, facts.nbytes) - row.rtt_s
    return Terms(
        endpoint=name,
        rtt_s=row.rtt_s,
        transfer_s=transfer_s,
        waiting_s=total_s - idle_s,
        own_s=idle_s - row.rtt_s - transfer_s,
        total_s=total_s,
        score=score,
        inflight=row.inflight,
        cached_tokens=row.cached_tokens,
        chosen=name == decision.chosen,
    )


def words(stories: list[AttemptStory]) -> list[str]:
    """The story of a request, a line each."""
    first = stories[0].entry.decision
    lines = [
        f"request {first.request_id}{_client(first)}: model {first.model}, "
        f"tenant {first.tenant or '-'}, about {count(first.prompt_tokens, 'prompt token')}, "
        f"{'streamed' if first.stream else 'not streamed'}; "
        f"{count(len(stories), 'attempt')}"
    ]
    for number, story in enumerate(stories, 1):
        lines += [f"{number}. {line}" if not at else f"   {line}" for at, line in _numbered(story)]
    return lines


def _client(decision: Decision) -> str:
    return f" ({decision.client_id!r} to its client)" if decision.client_id else ""


def _numbered(story: AttemptStory) -> list[tuple[int, str]]:
    decision = story.entry.decision
    lines = [f"{_moment(decision.unix_s)}, {_kind(decision.kind)}: {_went(story)}"]
    if decision.reason:
        lines.append(decision.reason)
    if decision.chosen:  # else the reason has named them all
        for endpoint, reason in sorted(decision.excluded.items()):
            lines.append(f"left out: {endpoint}: {reason}")
    if decision.shadow_policy:
        same = "the same" if decision.shadow == decision.chosen else decision.shadow
        lines.append(f"shadow policy {decision.shadow_policy} would have taken {same}")
    if story.entry.outcome is not None:
        lines.append(_ended(story.entry, story.entry.outcome))
    return list(enumerate(lines))


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def _kind(kind: AttemptKind) -> str:
    return {
        AttemptKind.FIRST: "first attempt",
        AttemptKind.RETRY: "retry",
        AttemptKind.HEDGE: "hedge beside a slow attempt",
        AttemptKind.TRIAL: "copy, to see whether the endpoint has recovered",
    }[kind]


def _went(story: AttemptStory) -> str:
    decision = story.entry.decision
    if not decision.chosen:
        return "no endpoint could take it"
    by = f"by policy {decision.policy}" + (" (A/B test)" if decision.arm else "")
    went = f"went to {decision.chosen} {by}"
    chosen = next((terms for terms in story.candidates if terms.chosen), None)
    if chosen is None:
        return went
    return (
        f"{went}: {duration(chosen.total_s)} expected to the first byte{_margin(story, chosen)} "
        f"(snapshot {decision.snapshot})"
    )


def _margin(story: AttemptStory, chosen: Terms) -> str:
    others = [terms for terms in story.candidates if not terms.chosen]
    if not others:
        return ", the only candidate"
    best = others[0]
    gap_s = best.total_s - chosen.total_s
    if gap_s > 0:
        return f", {duration(gap_s)} less than the next best, {best.endpoint}"
    if gap_s == 0:
        return f", the same as {best.endpoint}"
    return (
        f", {duration(-gap_s)} more than {best.endpoint}; the policy has other reasons (session, "
        "cached prefix, load, chance)"
    )


def _ended(entry: LedgerEntry, outcome: AttemptOutcome) -> str:
    status = f" with status {entry.status}" if entry.status else ""
    error = f": {entry.error}" if entry.error else ""
    first = f", first byte after {duration(entry.ttft_s)}" if entry.ttft_s is not None else ""
    return f"{_OUTCOMES[outcome]}{status} after {duration(entry.duration_s)}{first}{error}"


_OUTCOMES = {
    AttemptOutcome.OK: "answered",
    AttemptOutcome.CLIENT_ERROR: "refused as the client's error",
    AttemptOutcome.LONE_ERROR: "refused what another endpoint answered",
    AttemptOutcome.BACKPRESSURE: "refused: the endpoint is full",
    AttemptOutcome.CANCELLED: "cancelled",
    AttemptOutcome.CONNECT: "failed to connect",
    AttemptOutcome.RESET: "connection ended before the first byte",
    AttemptOutcome.STATUS: "failed",
    AttemptOutcome.TIMEOUT: "timed out",
    AttemptOutcome.SILENT: "said nothing for too long",
    AttemptOutcome.CLOSED: "found its kept connection closed",
    AttemptOutcome.STREAM: "ended in the middle of the answer",
}
