"""What the ledger is told: why each attempt went where it went, and what became of it."""

from __future__ import annotations

from time import time

from trainmesh.serving.decide.choice import RoutingChoice
from trainmesh.serving.decide.decision_record import decision_of
from trainmesh.serving.decide.endpoint import Attempt
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    RequestFacts,
)
from trainmesh.serving.ledger.entry import LedgerEntry
from trainmesh.serving.ledger.writer import LedgerWriter
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["Recorder"]


class Recorder:
    """One worker's. ``ledger``: None where none is kept."""

    def __init__(self, ledger: LedgerWriter | None) -> None:
        self._ledger = ledger
        self.version = 0
        """Of the snapshot that decisions are taken with."""

    def began(self, choice: RoutingChoice, attempt: Attempt) -> None:
        """An attempt begins: keep why it goes where it goes, until it is over."""
        if self._ledger is not None:
            attempt.decision = decision_of(
                choice, attempt.facts, attempt.kind, unix_s=time(), snapshot=self.version
            )

    def none_found(self, choice: RoutingChoice, facts: RequestFacts) -> None:
        """No endpoint could take a request: write down why."""
        if self._ledger is not None:
            decision = decision_of(
                choice, facts, AttemptKind.FIRST, unix_s=time(), snapshot=self.version
            )
            self._ledger.add(LedgerEntry(decision=decision, status=503))

    def ended(self, upstream: Upstream, outcome: AttemptOutcome, now_s: float) -> None:
        """An attempt is over: write down both."""
        attempt = upstream.attempt
        if self._ledger is None or attempt.decision is None:
            return
        first_s = attempt.first_byte_s
        entry = LedgerEntry(
            decision=attempt.decision,
            outcome=outcome,
            status=upstream.answer.status,
            ttft_s=first_s - attempt.started_s if first_s else None,
            duration_s=now_s - attempt.started_s,
            output_tokens=upstream.output_tokens(),
            error=upstream.error,
        )
        self._ledger.add(entry)
