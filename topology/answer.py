"""``trainmesh plan``'s answer: the best plan for a graph nobody runs on yet, and the proof.

The document is a contract that others script against; see docs/planning.md. Keys are added, never
renamed or removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainmesh.errors import ConfigError
from trainmesh.topology.advice import advice
from trainmesh.topology.bounds import Bound, bound
from trainmesh.topology.explain import advice_words
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import choose
from trainmesh.topology.request import ANY
from trainmesh.types import Choice, Collective, Plan

__all__ = ["Answer", "answer"]

MARGIN = 0.001
"""Native stays for a gain of less: there is no job yet for which a switch would be a risk."""


@dataclass(frozen=True)
class Answer:
    """``explain``: a line each."""

    collective: Collective
    bound: Bound
    choice: Choice
    explain: tuple[str, ...]

    @property
    def chosen(self) -> Plan:
        """The plan that won."""
        return next(p for p in self.choice.candidates if p.algorithm == self.choice.chosen)

    def document(self) -> dict[str, Any]:
        """The contract's JSON, of plain built-ins."""
        nbytes = self.choice.nbytes
        return {
            "collective": self.collective.value,
            "bytes": nbytes,
            "bound": {
                "algbw_GBps": _algbw_GBps(nbytes, self.bound.time_s),
                "time_s": self.bound.time_s,
                "kind": self.bound.kind,
                "cut": list(self.bound.cut),
                "links": list(self.bound.links),
                "groups": [list(group) for group in self.bound.groups],
                "exact": self.bound.exact,
                "slack_at_most": self.slack_at_most,
            },
            "plans": [_plan(plan) for plan in self.choice.candidates],
            "chosen": self.choice.chosen,
            "explain": "\n".join(self.explain),
            "crossovers": [
                {"bytes": change.nbytes, "before": change.before, "after": change.after}
                for change in self.choice.crossovers
            ],
        }

    @property
    def slack_at_most(self) -> float:
        """By how much more than the bound, as a share of it, the true optimum may take: 0 where
        the bound is exact or a plan reaches it."""
        if self.bound.exact or not self.bound.time_s:
            return 0.0
        best = max(plan.efficiency for plan in self.choice.candidates)
        return max(0.0, 1 / best - 1)


def answer(
    graph: LinkGraph,
    collective: Collective,
    nbytes: int,
    *,
    only: str | None = None,
    max_trees: int = 64,
) -> Answer:
    """Plan one collective of ``nbytes`` (see ``Collective``) on ``graph``.

    Raises:
        ConfigError: ``only`` is not a known algorithm, or does not apply here.
    """
    choice = choose(
        graph,
        [nbytes],
        collective=collective,
        executors=ANY,
        max_trees=max_trees,
        margin=MARGIN,
        only=only,
    )
    if only is not None and choice.chosen != only:
        known = ", ".join(plan.algorithm for plan in choice.candidates)
        raise ConfigError(
            f"algorithm {only!r} does not apply to this graph and {collective.value}; "
            f"those that do: {known}"
        )
    least = bound(graph, nbytes, collective)
    words = (*choice.explain, *advice_words(advice(graph, least, collective)))
    return Answer(collective, least, choice, words)


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "algorithm": plan.algorithm,
        "algbw_GBps": _algbw_GBps(plan.nbytes, plan.predicted_s),
        "time_s": plan.predicted_s,
        "efficiency": plan.efficiency if plan.predicted_s else 1.0,
        "valid": True,  # a plan that isn't proven does not leave the planner
        "reason": plan.reason,
        "num_chunks": plan.num_chunks,
        "num_trees": len(plan.trees),
        "bottleneck": list(plan.bottleneck),
    }


def _algbw_GBps(nbytes: int, time_s: float) -> float | None:
    """None where nothing has to move: one rank."""
    return nbytes / time_s / 1e9 if time_s else None
