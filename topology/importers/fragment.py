"""A piece of a link graph, and the pen that draws one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trainmesh.topology.graph import Kind, Link, Node, Provenance
from trainmesh.types import LinkCost

__all__ = ["NETWORK", "Fragment", "Pen", "rank_name"]

NETWORK = "core switch"
"""What joins the hosts, in fragments as in ``graph.host_graph``: one switch that does not block."""


@dataclass(frozen=True)
class Fragment:
    """Nodes and links that need not be connected, and whose ranks need not be 0..N-1.

    ``notes`` say in words what the text left out or left open.
    """

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks, in order."""
        return tuple(sorted(node.rank for node in self.nodes if node.rank is not None))


def rank_name(host: str, rank: int) -> str:
    """The node of a rank: the same in every fragment and in ``graph.host_graph``, so that they
    can be merged."""
    return f"{host}/rank{rank}"


class Pen:
    """Collects nodes and links. A node may be named again; links between the same two nodes lie
    side by side, so their bandwidths add up."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._links: dict[str, Link] = {}
        self._notes: dict[str, None] = {}
        self._said: dict[str, list[str]] = {}

    def node(self, name: str, kind: Kind, rank: int | None = None) -> str:
        """Add a node unless it is there; returns its name."""
        self._nodes.setdefault(name, Node(name, kind, rank))
        return name

    def one_way(
        self,
        src: str,
        dst: str,
        cost: LinkCost,
        link_class: str,
        provenance: Provenance = Provenance.DISCOVERED,
    ) -> None:
        """Add a directed link, or its bandwidth to the one that is there."""
        link = Link(src, dst, cost, link_class, provenance)
        other = self._links.get(link.name)
        if other is not None:
            link = _side_by_side(other, link)
        self._links[link.name] = link

    def both_ways(
        self,
        a: str,
        b: str,
        cost: LinkCost,
        link_class: str,
        provenance: Provenance = Provenance.DISCOVERED,
    ) -> None:
        for src, dst in ((a, b), (b, a)):
            self.one_way(src, dst, cost, link_class, provenance)

    def notes(self, texts: Iterable[str]) -> None:
        """Each is kept once."""
        self._notes.update(dict.fromkeys(texts))

    def say(self, text: str, where: str) -> None:
        """A note about one place; places of which the same is said become one note, with the
        first of them and their number."""
        self._said.setdefault(text, []).append(where)

    def fragment(self) -> Fragment:
        said = (
            f"{places[0]}: {text}" + (f" ({len(places)} times)" if len(places) > 1 else "")
            for text, places in self._said.items()
        )
        notes = (*said, *self._notes)
        return Fragment(tuple(self._nodes.values()), tuple(self._links.values()), notes)


def _side_by_side(a: Link, b: Link) -> Link:
    """Both together: the sum of the bandwidths, the rest of the faster one."""
    fast = max(a, b, key=lambda link: link.cost.bandwidth_bytes_per_s)
    bandwidth = a.cost.bandwidth_bytes_per_s + b.cost.bandwidth_bytes_per_s
    cost = LinkCost(alpha_s=fast.cost.alpha_s, bandwidth_bytes_per_s=bandwidth)
    return replace(fast, cost=cost, provenance=min(a.provenance, b.provenance))
