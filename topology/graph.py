"""The link graph: an immutable snapshot of ranks, switches and directed links."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from functools import cached_property
from itertools import pairwise

import networkx as nx

from trainmesh.errors import GraphError
from trainmesh.topology.routes import Route, RouteFinder, natural
from trainmesh.types import MAX_RANKS, LinkCost

__all__ = [
    "MAX_LINKS",
    "MAX_NAME",
    "LinkHealth",
    "Kind",
    "Link",
    "LinkGraph",
    "Node",
    "Provenance",
    "host_graph",
    "link_problem",
    "node_problem",
]

MAX_LINKS = 500_000
"""Counted by direction; a cluster of 16 384 GPUs with their NICs has about 200 000."""
MAX_NAME = 120
"""Characters of a node's name; two of them make the name of a link, at most 256."""
LOOPBACK = LinkCost(alpha_s=50e-6, bandwidth_bytes_per_s=2e9)
"""Gloo between processes of one host: a few copies through the kernel."""
ETHERNET = LinkCost(alpha_s=100e-6, bandwidth_bytes_per_s=1.25e9)
"""10 Gbit/s through the kernel's TCP, the least that clusters have."""


class Kind(StrEnum):
    RANK = "rank"
    SWITCH = "switch"
    NIC = "nic"
    HOST = "host"


class Provenance(IntEnum):
    """Where a link's cost comes from; the larger value is the more trustworthy."""

    ASSUMED = 0
    DECLARED = 1
    DISCOVERED = 2
    MEASURED = 3


class LinkHealth(StrEnum):
    """The state of a link beside its cost. The planner does not use a quarantined link."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Node:
    """A vertex; ``rank`` is set for nodes of kind rank only."""

    name: str
    kind: Kind
    rank: int | None = None


@dataclass(frozen=True)
class Link:
    """A directed edge from node ``src`` to node ``dst``."""

    src: str
    dst: str
    cost: LinkCost
    link_class: str = "ethernet"
    provenance: Provenance = Provenance.DECLARED
    health: LinkHealth = LinkHealth.HEALTHY

    @property
    def name(self) -> str:
        return f"{self.src}->{self.dst}"


def node_problem(node: Node, others: Mapping[str, Node]) -> str | None:
    """What is wrong with adding ``node`` to ``others`` (by name); None if nothing is."""
    if not node.name.isprintable() or not 0 < len(node.name) <= MAX_NAME or "->" in node.name:
        return f"node {node.name[:40]!r}: a name has 1 to {MAX_NAME} printable characters, no '->'"
    if node.name in others:
        return f"node {node.name!r} is there twice"
    if (node.rank is None) is (node.kind is Kind.RANK):
        return f"node {node.name!r}: nodes of kind rank have a rank, and only they"
    return None


LEAST_BYTES_PER_S = 1.0
"""A slower link is no link, and its times would be too large to calculate with."""


def link_problem(link: Link, nodes: Collection[str], others: Collection[str]) -> str | None:
    """What is wrong with adding ``link`` to a graph that has ``nodes`` and the links ``others``
    (by name); None if nothing is."""
    for end in (link.src, link.dst):
        if end not in nodes:
            return f"link {link.name}: there is no node {end!r}"
    if link.src == link.dst:
        return f"link {link.name} leads to itself"
    if link.name in others:
        return f"link {link.name} is there twice"
    if not LEAST_BYTES_PER_S <= link.cost.bandwidth_bytes_per_s < math.inf:
        return f"link {link.name}: the bandwidth must be positive and finite, at least 1 B/s"
    if not 0 <= link.cost.alpha_s < math.inf:
        return f"link {link.name}: alpha must be non-negative and finite"
    return None


class LinkGraph:
    """A versioned, immutable, connected graph in which the ranks are 0..world_size-1.

    Raises:
        GraphError: a wrong, unknown or duplicate node or link, too many links, ranks that are
            not 0..N-1, or a rank that can't reach another one.
    """

    def __init__(self, nodes: Iterable[Node], links: Iterable[Link], *, version: int = 1) -> None:
        self.version = version
        self.nodes = tuple(nodes)
        self.links = tuple(links)
        self._by_name: dict[str, Link] = {}
        self._check_parts()
        self._rank_nodes = self._number_ranks()
        self._check_connected()

    @property
    def world_size(self) -> int:
        return len(self._rank_nodes)

    def rank_node(self, rank: int) -> str:
        """Name of the node of ``rank``."""
        return self._rank_nodes[rank]

    def link(self, name: str) -> Link:
        """The link called ``src->dst``."""
        return self._by_name[name]

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of nodes and links, whatever the version: equal graphs, equal digests.
        Costs count to 12 significant digits, as many as survive a topology document."""
        digest = hashlib.sha256()
        for node in sorted(self.nodes, key=lambda node: node.name):
            digest.update(f"{node.name}\0{node.kind}\0{node.rank}\n".encode())
        for link in sorted(self.links, key=lambda link: link.name):
            cost = f"{link.cost.bandwidth_bytes_per_s:.11e}\0{link.cost.alpha_s:.11e}"
            state = "" if link.health is LinkHealth.HEALTHY else f"\0{link.health}"
            words = f"{link.name}\0{cost}\0{link.link_class}\0{link.provenance}{state}\n"
            digest.update(words.encode())
        return digest.hexdigest()

    def usable(self) -> LinkGraph:
        """This version without the links in quarantine.

        Raises:
            GraphError: some rank can't do without them.
        """
        kept = [link for link in self.links if link.health is not LinkHealth.QUARANTINED]
        if len(kept) == len(self.links):
            return self
        try:
            return LinkGraph(self.nodes, kept, version=self.version)
        except GraphError as error:
            raise GraphError(f"without the links in quarantine: {error}") from error

    def digraph(self) -> nx.DiGraph[str]:
        """A copy for graph algorithms; edges carry ``capacity`` (bytes/s)."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        names = [node.name for node in self.nodes]
        names.sort(key=natural)
        graph.add_nodes_from(names)
        for link in sorted(self.links, key=lambda link: (natural(link.src), natural(link.dst))):
            graph.add_edge(link.src, link.dst, capacity=link.cost.bandwidth_bytes_per_s)
        return graph

    def path(self, src: int, dst: int) -> tuple[Link, ...]:
        """The cheapest path from rank ``src`` to rank ``dst``, through other ranks only where
        there is no other way; ties go to the names that sort first."""
        nodes = self._router.path(self._rank_nodes[src], self._rank_nodes[dst])
        return tuple(self._by_name[f"{a}->{b}"] for a, b in pairwise(nodes))

    def route(self, src: int, dst: int, via: Sequence[str] | None = None) -> Route:
        """All the cheapest paths from rank ``src`` to rank ``dst``, or the one through the nodes
        ``via``.

        Raises:
            GraphError: two of those have no link.
        """
        first, last = self._rank_nodes[src], self._rank_nodes[dst]
        if via is None:
            return self._router.route(first, last)
        try:
            return self._router.along((first, *via, last))
        except KeyError as error:
            raise GraphError(f"no link {'->'.join(error.args[0])}") from error

    def with_class_cost(self, link_class: str, cost: LinkCost) -> LinkGraph:
        """The next version, in which the slowest link of ``link_class`` costs ``cost``; the
        others of the class keep their ratio of bandwidths and difference of alphas to it.

        Raises:
            GraphError: there is no such class.
        """
        slowest = self.slowest(link_class).cost
        ratio = cost.bandwidth_bytes_per_s / slowest.bandwidth_bytes_per_s
        longer_s = cost.alpha_s - slowest.alpha_s

        def changed(link: Link) -> Link:
            alpha_s = max(0.0, link.cost.alpha_s + longer_s)
            bandwidth = link.cost.bandwidth_bytes_per_s * ratio
            new = LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=bandwidth)
            exact = cost if link.cost == slowest else new
            return replace(link, cost=exact, provenance=Provenance.MEASURED)

        links = (changed(li) if li.link_class == link_class else li for li in self.links)
        return LinkGraph(self.nodes, links, version=self.version + 1)

    def slowest(self, link_class: str) -> Link:
        """The link of ``link_class`` with the least bandwidth: what a cost of the class refers
        to.

        Raises:
            GraphError: there is no such class.
        """
        links = (link for link in self.links if link.link_class == link_class)
        least = min(links, key=lambda li: (li.cost.bandwidth_bytes_per_s, li.name), default=None)
        if least is None:
            raise GraphError(f"no link has class {link_class!r}")
        return least

    @cached_property
    def _router(self) -> RouteFinder:
        return RouteFinder(self.links, self._rank_nodes)

    def _check_parts(self) -> None:
        if len(self.links) > MAX_LINKS:
            raise GraphError(f"{len(self.links)} links, more than the {MAX_LINKS} allowed")
        nodes: dict[str, Node] = {}
        for node in self.nodes:
            if problem := node_problem(node, nodes):
                raise GraphError(problem)
            nodes[node.name] = node
        for link in self.links:
            name = link.name
            if problem := link_problem(link, nodes, self._by_name):
                raise GraphError(problem)
            self._by_name[name] = link

    def _number_ranks(self) -> tuple[str, ...]:
        by_rank = {node.rank: node.name for node in self.nodes if node.kind is Kind.RANK}
        count = sum(node.kind is Kind.RANK for node in self.nodes)
        if not count:
            raise GraphError("no node has kind rank")
        if count > MAX_RANKS:
            raise GraphError(f"{count} ranks, more than the {MAX_RANKS} allowed")
        if set(by_rank) != set(range(count)):
            raise GraphError(f"the ranks must be 0..{count - 1}, each on one node")
        return tuple(by_rank[rank] for rank in range(count))

    def _check_connected(self) -> None:
        first = self._rank_nodes[0]
        ahead: dict[str, list[str]] = defaultdict(list)
        back: dict[str, list[str]] = defaultdict(list)
        for link in self.links:
            ahead[link.src].append(link.dst)
            back[link.dst].append(link.src)
        reached, reaching = _reachable(first, ahead), _reachable(first, back)
        for name in self._rank_nodes:
            if name not in reached:
                raise GraphError(f"no path from {first} to {name}: the graph is disconnected")
            if name not in reaching:
                raise GraphError(f"no path from {name} to {first}: the graph is disconnected")


def _reachable(first: str, neighbours: Mapping[str, Sequence[str]]) -> set[str]:
    reached, waiting = {first}, [first]
    while waiting:
        for name in neighbours.get(waiting.pop(), ()):
            if name not in reached:
                reached.add(name)
                waiting.append(name)
    return reached


def host_graph(hosts: Mapping[str, Sequence[int]]) -> LinkGraph:
    """The graph to assume when none is declared: the ranks of a host around one switch of class
    loopback, the hosts around one core switch of class ethernet.

    The costs are rough; they matter only relative to each other until they are measured.
    """
    nodes: list[Node] = []
    links: list[Link] = []

    def both_ways(a: str, b: str, cost: LinkCost, link_class: str) -> None:
        for src, dst in ((a, b), (b, a)):
            links.append(Link(src, dst, cost, link_class, Provenance.ASSUMED))

    for host, ranks in hosts.items():
        nodes.append(Node(host, Kind.HOST))
        for rank in ranks:
            nodes.append(Node(f"{host}/rank{rank}", Kind.RANK, rank))
            both_ways(f"{host}/rank{rank}", host, LOOPBACK, "loopback")
    if len(hosts) > 1:
        nodes.append(Node("core switch", Kind.SWITCH))
        for host in hosts:
            both_ways(host, "core switch", ETHERNET, "ethernet")
    return LinkGraph(nodes, links)
