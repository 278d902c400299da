"""The estimated state of the links: as they were when the job began, and as they are now."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from trainmesh.topology.graph import Link, LinkGraph, Provenance
from trainmesh.topology.measure.measured import PAIR_TOLERANCE, not_tcp, with_pair_times
from trainmesh.types import ClassFit, LinkCost, LinkOrigin, PairTime
from trainmesh.units import rate

__all__ = ["Links"]

CHANGED = 1.5 * PAIR_TOLERANCE
"""A link counts as slow, or as changed, if its bandwidth is off by more than this share."""
ALIKE_ALPHAS = 3.0
"""Latencies within this factor count as equal, because they come from the processes, not the
links."""
MAX_PROBING = 128
"""More nodes are not probed: each exchanges messages with each other one, in as many turns, which
would take some seconds."""
MAX_ALIKE = 2
"""Nodes whose links can't differ in a way that a plan could use."""
MAX_NAMED = 4
"""Links in one sentence; of more there is the number."""


class Links:
    """The link graph of one job.

    Each probe measures all pairs, so it is compared with the graph of the beginning and not with
    one that an earlier probe has changed: a link that has healed is then exactly as it was.

    Args:
        graph: As declared, or as assumed.
        ranks: The ranks of each node.
        backend: That of the job's process group.
    """

    def __init__(self, graph: LinkGraph, ranks: Mapping[str, Sequence[int]], backend: str) -> None:
        self.first = graph
        """As they were when the job began, as far as that is known."""
        self.now = graph
        self.origin = LinkOrigin.GIVEN
        """What the costs of ``now`` are taken from."""
        self.slow: tuple[str, ...] = ()
        """The links that have become slow compared with the others. If all have become slow alike,
        no plan helps, or the probe itself could not go faster."""
        self.slowest_bytes_per_s = min(map(_speed, graph.links), default=math.inf)
        self.is_probed = False
        self._is_assumed = all(link.provenance is Provenance.ASSUMED for link in graph.links)
        self._ranks = ranks
        self._except = not_tcp(backend)

    @property
    def num_probing(self) -> int:
        """How many ranks take part in a probe: one of each node, or all of a single node."""
        return len(self._ranks) if len(self._ranks) > 1 else self.first.world_size

    @property
    def can_be_probed(self) -> bool:
        """Whether a probe's messages would take the path of the training's, and would not be too
        many."""
        same_way = not (self._except and len(self._ranks) == 1)
        return 1 < self.num_probing <= MAX_PROBING and same_way

    @property
    def are_unknown(self) -> bool:
        """Nobody has declared or measured the links between the nodes, and they may differ."""
        return self._is_assumed and not self.is_probed and len(self._ranks) > MAX_ALIKE

    def fit(self, fit: ClassFit) -> bool:
        """Take the cost of a link class from the buckets' times, unless there has been a probe,
        which says more. Returns whether it was taken."""
        if not self.is_probed:
            self._set(self.first.with_class_cost(fit.link_class, fit.planned), LinkOrigin.BUCKETS)
        return not self.is_probed

    def probe(self, pairs: Sequence[PairTime]) -> str:
        """Take the measurements of a probe.

        Returns:
            What is new, in words; empty if nothing is.
        """
        now = with_pair_times(self.first, self._ranks, pairs, except_classes=self._except)
        now = _as_declared_at_most(self.first, now)
        was_probed, self.is_probed = self.is_probed, True
        if self._is_assumed and not was_probed:
            self.first = _evened(now)
            self._set(self.first, LinkOrigin.PROBES)
            return "the links between the nodes are known now: " + _speeds(self.now)
        words = _changes(self.now if was_probed else self.first, now)
        if not words:
            return ""
        if self._is_assumed:
            self.first = _faster(self.first, now)
        self._set(now, LinkOrigin.PROBES)
        return words

    def _set(self, graph: LinkGraph, origin: LinkOrigin) -> None:
        self.origin = origin
        self.now = LinkGraph(graph.nodes, graph.links, version=self.now.version + 1)
        self.slowest_bytes_per_s = min(map(_speed, graph.links))
        if self.is_probed:
            kept = _kept(self.first, self.now)
            least = (1 - CHANGED) * max(kept.values())
            self.slow = tuple(name for name, share in kept.items() if share < least)


def _speed(link: Link) -> float:
    return link.cost.bandwidth_bytes_per_s


def _kept(before: LinkGraph, after: LinkGraph) -> dict[str, float]:
    """The share of its bandwidth that each link has kept."""
    pairs = zip(before.links, after.links, strict=True)
    return {old.name: _speed(new) / _speed(old) for old, new in pairs}


def _changes(before: LinkGraph, after: LinkGraph) -> str:
    changed = {
        name: share
        for name, share in _kept(before, after).items()
        if not 1 - CHANGED <= share <= 1 / (1 - CHANGED)
    }
    named = ", ".join(
        f"{name} is at {rate(_speed(after.link(name)))} ({share:.0%} of before)"
        for name, share in list(changed.items())[:MAX_NAMED]
    )
    more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
    return named + more


def _speeds(graph: LinkGraph) -> str:
    measured = [_speed(link) for link in graph.links if link.provenance is Provenance.MEASURED]
    if not measured:
        return "nothing was measured"
    low, high = min(measured), max(measured)
    if low == high:
        return f"all at {rate(low)}"
    return f"{rate(low)} to {rate(high)}"


def _as_declared_at_most(declared: LinkGraph, measured: LinkGraph) -> LinkGraph:
    """A declaration says what a link should carry. On one machine, where ranks stand in for hosts,
    a probe would measure the machine's memory."""

    def limited(old: Link, new: Link) -> Link:
        if old.provenance is not Provenance.DECLARED or _speed(new) <= _speed(old):
            return new
        return replace(
            new, cost=LinkCost(alpha_s=new.cost.alpha_s, bandwidth_bytes_per_s=_speed(old))
        )

    links = map(limited, declared.links, measured.links)
    return LinkGraph(measured.nodes, links, version=measured.version)


def _faster(a: LinkGraph, b: LinkGraph) -> LinkGraph:
    """Each link as fast as in the graph in which it is faster."""
    links = (
        new if _speed(new) > _speed(old) else old for old, new in zip(a.links, b.links, strict=True)
    )
    return LinkGraph(a.nodes, links, version=a.version)


def _evened(graph: LinkGraph) -> LinkGraph:
    """Make measured links of one class equal if they are nearly alike: a plan must not be made from
    the noise of single messages."""
    found: dict[str, list[Link]] = defaultdict(list)
    for link in graph.links:
        if link.provenance is Provenance.MEASURED:
            found[link.link_class].append(link)
    costs: dict[str, LinkCost] = {}
    for same in found.values():
        speeds = _levels({link.name: _speed(link) for link in same}, 1 / (1 - CHANGED))
        alphas = _levels({link.name: link.cost.alpha_s for link in same}, ALIKE_ALPHAS)
        for link in same:
            costs[link.name] = LinkCost(
                alpha_s=alphas[link.name], bandwidth_bytes_per_s=speeds[link.name]
            )
    links = (replace(li, cost=costs.get(li.name, li.cost)) for li in graph.links)
    return LinkGraph(graph.nodes, links, version=graph.version)


def _levels(values: Mapping[str, float], factor: float) -> dict[str, float]:
    """Each value as the median of its level: from the largest on, those within ``factor``."""
    levels: list[list[str]] = []
    for name in sorted(values, key=lambda name: (-values[name], name)):
        if levels and values[levels[-1][0]] <= factor * values[name]:
            levels[-1].append(name)
        else:
            levels.append([name])
    return {name: median(values[other] for other in level) for level in levels for name in level}
