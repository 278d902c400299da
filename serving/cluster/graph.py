"""The places of endpoints in the link graph, and the paths to them; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from trainmesh.serving.cluster.verdicts import SubjectKind, Verdict, link_names
from trainmesh.topology.graph import Link, LinkGraph, LinkHealth
from trainmesh.topology.routes import REFERENCE_BYTES, TIE, RouteFinder

__all__ = ["Map", "RoundTrip"]


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """From the router to a node and back. ``rtt_s``: the sum of alphas both ways;
    ``bandwidth_bytes_per_s``: of the narrowest link there, 0 where no link is crossed;
    ``blocked``: why nothing may go there, empty if it may."""

    rtt_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    blocked: str = ""


class Map:
    """The graph, seen from the router's node ``here``.

    Packets take the cheapest path. A quarantined link is avoided only if another path is as cheap
    (one of several spines is out); otherwise the node behind it is blocked, because a router can't
    choose the path of its packets.
    """

    def __init__(self, graph: LinkGraph, here: str, verdicts: Collection[Verdict] = ()) -> None:
        ranks = [graph.rank_node(rank) for rank in range(graph.world_size)]
        reasons = _link_reasons(graph.links, [v for v in verdicts if v.subject != here])
        self._here = here
        self._links = {link.name: link for link in graph.links}
        self._nodes = {node.name for node in graph.nodes}
        self._all = RouteFinder(graph.links, ranks)
        self._open = RouteFinder((link for link in graph.links if link.name not in reasons), ranks)
        self._reasons = reasons

    def way(self, node: str, free_share: Mapping[str, float] | None = None) -> RoundTrip | None:
        """To ``node`` and back; None where the graph does not say. ``free_share``: of links that
        others use too, the part of the bandwidth that is ours (see ``traffic``)."""
        if self._here not in self._nodes or node not in self._nodes:
            return None
        there, blocked = self._one_way(self._here, node)
        back, blocked_back = self._one_way(node, self._here)
        if there is None or back is None:
            return RoundTrip(blocked=f"no way to node {node} in the link graph")
        links = [*there, *back]
        share = free_share or {}
        return RoundTrip(
            rtt_s=sum(link.cost.alpha_s for link in links),
            bandwidth_bytes_per_s=min(
                (li.cost.bandwidth_bytes_per_s * share.get(li.name, 1.0) for li in links),
                default=0.0,
            ),
            blocked=blocked or blocked_back,
        )

    def _one_way(self, src: str, dst: str) -> tuple[tuple[Link, ...] | None, str]:
        usual = self._path(self._all, src, dst)
        if usual is None:
            return None, ""
        held = next((link for link in usual if link.name in self._reasons), None)
        if held is None:
            return usual, ""
        other = self._path(self._open, src, dst)
        if other is not None and _time_s(other) <= _time_s(usual) * TIE:
            return other, ""
        return usual, self._reasons[held.name]

    def _path(self, router: RouteFinder, src: str, dst: str) -> tuple[Link, ...] | None:
        try:
            nodes = router.path(src, dst)
        except KeyError:  # the router's answer where no way leads
            return None
        return tuple(self._links[f"{a}->{b}"] for a, b in pairwise(nodes))


def _time_s(links: Iterable[Link]) -> float:
    return sum(link.cost.time_s(REFERENCE_BYTES) for link in links)


def _link_reasons(links: Iterable[Link], verdicts: Collection[Verdict]) -> dict[str, str]:
    """Link name -> why nothing may cross it."""
    on_links = {
        name: f"link {name} {verdict.words}"
        for verdict in verdicts
        if verdict.kind is SubjectKind.LINK
        for name in link_names(verdict.subject)
    }
    on_nodes = {
        verdict.subject: f"node {verdict.subject} {verdict.words}"
        for verdict in verdicts
        if verdict.kind is SubjectKind.NODE
    }
    reasons: dict[str, str] = {}
    for link in links:
        reason = on_links.get(link.name) or on_nodes.get(link.dst) or on_nodes.get(link.src)
        if reason is None and link.health is LinkHealth.QUARANTINED:
            reason = f"link {link.name} in quarantine (by the training job's graph)"
        if reason is not None:
            reasons[link.name] = f"{reason}, on the way"
    return reasons
