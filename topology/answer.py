"""``trainmesh plan``'s answer: the best plan for a graph nobody runs on yet, and the proof.

The document is a contract that others script against; see docs/planning.md. Keys are added, never
renamed or removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trainmesh.errors import ConfigError
from trainmesh.topology.advice import advice
from trainmesh.topology.bounds import Bound, bound
from trainmesh.topology.explain import candidate_name, describe_advice, slack_at_most
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.nccl.job import NO_RCCL, from_graph, has_gpu_links, is_of_amd
from trainmesh.topology.nccl.model import NcclCost, crossovers, predict
from trainmesh.topology.nccl.tables import Generation
from trainmesh.topology.planner import choose
from trainmesh.topology.planners.hierarchical import islands
from trainmesh.topology.request import ANY
from trainmesh.types import Choice, Collective, Plan
from trainmesh.units import count, duration

__all__ = ["PlanAnswer", "NcclAnswer", "answer"]

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
class PlanAnswer:
    """``explain``: a line each. ``native_is_ring`` as in ``Executors``."""

    collective: Collective
    bound: Bound
    choice: Choice
    explain: tuple[str, ...]
    native_is_ring: bool
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
            "native_is_ring": self.native_is_ring,
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
) -> PlanAnswer:
    """Plan one collective of ``nbytes`` (see ``Collective``) on ``graph``; ``nccl``: compare with
    what NCCL would pick on GPUs of this generation.

    Plans are compared with native only where that is what runs without us: one ring in rank order
    is gloo's all-reduce and all-gather, not its reduce-scatter (which torch makes of an all-reduce)
    and nothing that NCCL runs, which is taken to be the backend where links are those of GPUs.

    Raises:
        ConfigError: ``only`` is not a known algorithm, or does not apply here.
        GraphError: the ranks can't do without the links in quarantine.
    """
    left_out = len(graph.links)
    graph = graph.usable()
    left_out -= len(graph.links)
    if nccl is not None and is_of_amd(graph):
        raise ConfigError(f"--nccl {nccl.name.lower()}: {NO_RCCL}; leave it out")
    native_is_ring = (
        collective != Collective.REDUCE_SCATTER and nccl is None and not has_gpu_links(graph)
    )
    executors = replace(ANY, native_is_ring=native_is_ring)
    choice = choose(
        graph,
        [nbytes],
        collective=collective,
        executors=executors,
        max_trees=max_trees,
        margin=MARGIN,
        only=only,
    )
    if only is not None and choice.chosen != only:
        [native] = (plan for plan in choice.candidates if plan.algorithm == choice.chosen)
        raise ConfigError(native.reason)
    least = bound(graph, nbytes, collective)
    words = [*choice.explain, *describe_advice(advice(graph, least, collective))]
    if left_out:
        words.append(f"Left out: {count(left_out, 'directed link')} in quarantine.")
    if nccl is None and not native_is_ring and collective != Collective.REDUCE_SCATTER:
        words.append(
            f"No comparison: {NO_RCCL}."
            if is_of_amd(graph)
            else "--nccl GPU compares with NCCL's own model instead."
        )
    plain = PlanAnswer(collective, least, choice, tuple(words), native_is_ring)
    return plain if nccl is None else _with_nccl(plain, graph, nccl)


def _with_nccl(plain: PlanAnswer, graph: LinkGraph, generation: Generation) -> PlanAnswer:
    """``plain`` held against NCCL's own model. The finest islands are taken for hosts; without any,
    all GPUs are in one."""
    hosts = max(islands(graph), key=len, default=(tuple(range(graph.world_size)),))
    job = from_graph(graph, hosts, generation)
    picked = predict(job, plain.collective, plain.choice.nbytes).chosen
    chosen = plain.chosen
    line = (
        f"NCCL would pick {picked.name} on {generation.name.lower()} GPUs in "
        f"{count(len(hosts), 'host')}, and expect {duration(picked.time_s)}; "
        f"the links alone would let {candidate_name(chosen, native_is_ring=False)} take "
        f"{duration(chosen.predicted_s)}, without what carrying it out costs."
    )
    changes = tuple(crossovers(job, plain.collective))
    found = NcclAnswer(picked, len(hosts), changes)
    return replace(plain, explain=(*plain.explain, line), nccl=found)


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
