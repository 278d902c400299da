"""``trainmesh plan``'s answer: the best plan for a graph nobody runs on yet, and the proof.

The document is a contract that others script against; see docs/planning.md. Keys are added, never
renamed or removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainmesh.errors import ConfigError
from trainmesh.format import count, duration
from trainmesh.topology.advice import advice
from trainmesh.topology.bounds import Bound, bound
from trainmesh.topology.explain import advice_words, slack_at_most
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.nccl.job import from_graph
from trainmesh.topology.nccl.model import NcclCost, crossovers, predict
from trainmesh.topology.nccl.tables import Generation
from trainmesh.topology.planner import choose
from trainmesh.topology.planners.hierarchical import islands
from trainmesh.topology.request import ANY
from trainmesh.types import Choice, Collective, Plan

__all__ = ["Answer", "NcclAnswer", "answer"]

MARGIN = 0.001
"""Native stays for a gain of less: there is no job yet for which a switch would be a risk."""


@dataclass(frozen=True)
class NcclAnswer:
    """What NCCL would do by itself, by its own cost model. ``changes``: (bytes from which on it
    picks something else, before, after)."""

    chosen: NcclCost
    num_hosts: int
    changes: tuple[tuple[int, str, str], ...]

    def document(self) -> dict[str, Any]:
        """Its part of the contract's JSON."""
        return {
            "algorithm": self.chosen.algorithm.value,
            "protocol": self.chosen.protocol.value,
            "time_s": self.chosen.time_s,
            "hosts": self.num_hosts,
            "crossovers": [
                {"bytes": nbytes, "before": before, "after": after}
                for nbytes, before, after in self.changes
            ],
        }


@dataclass(frozen=True)
class Answer:
    """``explain``: a line each."""

    collective: Collective
    bound: Bound
    choice: Choice
    explain: tuple[str, ...]
    nccl: NcclAnswer | None = None

    @property
    def chosen(self) -> Plan:
        """The plan that won."""
        return next(p for p in self.choice.candidates if p.algorithm == self.choice.chosen)

    def document(self) -> dict[str, Any]:
        """The contract's JSON, of plain built-ins."""
        nbytes = self.choice.nbytes
        slack = slack_at_most(self.bound, self.choice.candidates)
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
                "exact": slack == 0,
                "slack_at_most": slack,
            },
            "plans": [_plan(plan) for plan in self.choice.candidates],
            "chosen": self.choice.chosen,
            "explain": "\n".join(self.explain),
            "crossovers": [
                {"bytes": change.nbytes, "before": change.before, "after": change.after}
                for change in self.choice.crossovers
            ],
            **({"nccl": self.nccl.document()} if self.nccl is not None else {}),
        }


def answer(
    graph: LinkGraph,
    collective: Collective,
    nbytes: int,
    *,
    only: str | None = None,
    max_trees: int = 64,
    nccl: Generation | None = None,
) -> Answer:
    """Plan one collective of ``nbytes`` (see ``Collective``) on ``graph``; ``nccl``: say also what
    NCCL would pick on GPUs of this generation.

    Raises:
        ConfigError: ``only`` is not a known algorithm, or does not apply here.
        GraphError: the ranks can't do without the links in quarantine.
    """
    left_out = len(graph.links)
    graph = graph.usable()
    left_out -= len(graph.links)
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
    words = [*choice.explain, *advice_words(advice(graph, least, collective))]
    if left_out:
        words.append(f"Left out: {count(left_out, 'directed link')} in quarantine.")
    if nccl is None:
        return Answer(collective, least, choice, tuple(words))
    found = _nccl(graph, collective, nbytes, nccl)
    line = (
        f"NCCL would pick {found.chosen.name} on {nccl.name.lower()} GPUs in "
        f"{count(found.num_hosts, 'host')}, and expect {duration(found.chosen.time_s)}."
    )
    return Answer(collective, least, choice, (*words, line), found)


def _nccl(
    graph: LinkGraph, collective: Collective, nbytes: int, generation: Generation
) -> NcclAnswer:
    """The finest islands are taken for hosts; without any, all GPUs are in one."""
    hosts = max(islands(graph), key=len, default=(tuple(range(graph.world_size)),))
    job = from_graph(graph, hosts, generation)
    chosen = predict(job, collective, nbytes).chosen
    return NcclAnswer(chosen, len(hosts), tuple(crossovers(job, collective)))


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
