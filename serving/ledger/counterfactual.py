"""Makes a ledger's decisions again: are they the same, and what would another policy have done?
Pure.

Each decision is taken anew from what was recorded of it: the candidates as they were then, the
same request, the same random draw. That another policy would in time have led to other loads is
not simulated, so what it would have saved is an estimate for the first request that it decides
otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct

from trainmesh.errors import ConfigError
from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.record import Decision, facts_of, replay
from trainmesh.serving.decide.types import Scorer
from trainmesh.serving.ledger.entry import LedgerEntry

__all__ = ["PolicyComparison", "Shift", "compare"]

KEPT = 10
"""Requests that are named as examples of a difference."""


class Shift(Struct, frozen=True, kw_only=True):
    """How many decisions went to one endpoint."""

    model: str
    endpoint: str
    recorded: int
    replayed: int


class PolicyComparison(Struct, frozen=True, kw_only=True):
    """What came out. ``policy`` is None where each decision was taken by its own one again."""

    policy: str | None
    decisions: int
    same: int
    unknown: dict[str, int]
    """Policies that aren't installed here -> their decisions, which are left out."""
    recorded_mean_s: float
    """Mean expected TTFT of what was chosen, over all decisions."""
    replayed_mean_s: float
    shifts: tuple[Shift, ...]
    examples: tuple[str, ...]
    """Requests that are decided otherwise."""

    @property
    def identical(self) -> bool:
        """Every decision could be taken again and is the same."""
        return self.same == self.decisions and not self.unknown


def compare(
    entries: Iterable[LedgerEntry],
    scorers: Mapping[str, Scorer],
    policy: str | None = None,
    model: str | None = None,
) -> PolicyComparison:
    """Take every decision (of ``model``) again, with ``policy`` or with its own one.

    Raises:
        ConfigError: there is no such policy.
    """
    if policy is not None and policy not in scorers:
        known = ", ".join(sorted(scorers))
        raise ConfigError(f"no policy is called {policy!r}; there are {known}")
    tally = _Tally()
    for entry in entries:
        decision = entry.decision
        if not decision.rows or model not in (None, decision.model):
            continue
        scorer = scorers.get(policy or decision.policy)
        if scorer is None:
            tally.unknown[decision.policy] += 1
        else:
            tally.add(decision, scorer)
    return tally.result(policy)


class _Tally:
    def __init__(self) -> None:
        self.unknown: Counter[str] = Counter()
        self._decisions = 0
        self._same = 0
        self._recorded: Counter[tuple[str, str]] = Counter()
        self._replayed: Counter[tuple[str, str]] = Counter()
        self._recorded_s = 0.0
        self._replayed_s = 0.0
        self._examples: list[str] = []

    def add(self, decision: Decision, scorer: Scorer) -> None:
        names = {row.index: name for row, name in zip(decision.rows, decision.names, strict=True)}
        again = names[replay(decision, scorer)]
        self._decisions += 1
        if again == decision.chosen:
            self._same += 1
        elif len(self._examples) < KEPT:
            self._examples.append(
                f"{decision.request_id}: {decision.chosen} ({decision.policy}) -> {again}"
            )
        self._recorded[decision.model, decision.chosen] += 1
        self._replayed[decision.model, again] += 1
        costs = expected_ttfts_s(
            facts_of(decision), decision.rows, decision.context, cache=decision.context.prefix_pays
        )
        by_name = dict(zip(decision.names, costs, strict=True))
        self._recorded_s += by_name[decision.chosen]
        self._replayed_s += by_name[again]

    def result(self, policy: str | None) -> PolicyComparison:
        number = self._decisions or 1
        endpoints = sorted(self._recorded.keys() | self._replayed.keys())
        return PolicyComparison(
            policy=policy,
            decisions=self._decisions,
            same=self._same,
            unknown=dict(self.unknown),
            recorded_mean_s=self._recorded_s / number,
            replayed_mean_s=self._replayed_s / number,
            shifts=tuple(
                Shift(
                    model=model,
                    endpoint=endpoint,
                    recorded=self._recorded[model, endpoint],
                    replayed=self._replayed[model, endpoint],
                )
                for model, endpoint in endpoints
            ),
            examples=tuple(self._examples),
        )
