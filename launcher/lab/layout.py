"""The hosts, switches and wires that a lab builds for a link graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainmesh.errors import GraphError
from trainmesh.topology.document import LinkChange, load_file_with_timeline
from trainmesh.topology.graph import Kind, LinkGraph
from trainmesh.types import LinkCost

__all__ = ["Host", "LabLayout", "Wire", "lay_out", "load_layout"]

MAX_HOSTS = 200
"""Each is a namespace with a launcher and its workers: what one machine carries."""


@dataclass(frozen=True)
class Host:
    """Ranks that share one network namespace. ``index`` is torchrun's node rank."""

    name: str
    index: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Wire:
    """A cable between a host and a switch, or two switches.

    ``a`` and ``b`` are the nodes that the file links, ``a_place`` and ``b_place`` the host or
    switch that they belong to. A host's end is always ``a``.
    """

    a: str
    b: str
    a_place: str
    b_place: str
    forward: LinkCost
    """From ``a`` to ``b``."""
    backward: LinkCost
    a_is_host: bool


@dataclass(frozen=True)
class LabLayout:
    """Hosts in the order of their ranks; hosts and switches are joined to a tree by ``wires``."""

    hosts: tuple[Host, ...]
    switches: tuple[str, ...]
    wires: tuple[Wire, ...]
    timeline: tuple[LinkChange, ...] = ()

    def path(self, src: str, dst: str) -> list[LinkCost]:
        """The cost of each link on the way from host ``src`` to host ``dst``."""
        onward: dict[str, list[tuple[str, LinkCost]]] = {}
        for wire in self.wires:
            onward.setdefault(wire.a_place, []).append((wire.b_place, wire.forward))
            onward.setdefault(wire.b_place, []).append((wire.a_place, wire.backward))
        ways: dict[str, list[LinkCost]] = {src: []}
        waiting = [src]
        while waiting:
            place = waiting.pop()
            for beyond, cost in onward[place]:
                if beyond not in ways:
                    ways[beyond] = [*ways[place], cost]
                    waiting.append(beyond)
        return ways[dst]

    def host(self, name: str) -> Host:
        """The host called ``name``.

        Raises:
            GraphError: there is none.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        names = ", ".join(host.name for host in self.hosts[:8])
        raise GraphError(f"there is no host {name!r}; the hosts are {names}")


def load_layout(path: Path) -> LabLayout:
    """The layout that a topology file describes.

    Raises:
        GraphError: not a usable topology file, or not one that a lab can build.
    """
    graph, timeline = load_file_with_timeline(path)
    try:
        return replace(lay_out(graph), timeline=timeline)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error


def lay_out(graph: LinkGraph) -> LabLayout:
    """The hosts, switches and wires of ``graph``.

    A host is a set of nodes connected without switches: a rank that is linked to a switch, or the
    ranks and NICs around a node of kind host, which gives the host its name.

    Raises:
        GraphError: the hosts and switches are not a tree, a host has not exactly one link to a
            switch, a link has one direction only, or a host's ranks are not consecutive.
    """
    kinds = {node.name: node.kind for node in graph.nodes}
    hosts, place = _hosts(graph, kinds)
    switches = tuple(name for name, kind in kinds.items() if kind is Kind.SWITCH)
    place |= {name: name for name in switches}
    wires = tuple(_wires(graph, place, set(switches)))
    _check_one_wire_a_host(hosts, wires)
    _check_tree([*(host.name for host in hosts), *switches], wires)
    return LabLayout(hosts, switches, wires)


def _hosts(graph: LinkGraph, kinds: Mapping[str, Kind]) -> tuple[tuple[Host, ...], dict[str, str]]:
    """The hosts, and for each of their nodes the host it belongs to."""
    ranks = {node.name: node.rank for node in graph.nodes if node.rank is not None}
    found: list[tuple[tuple[int, ...], str, set[str]]] = []
    for members in _components(graph, kinds):
        numbers = tuple(sorted(ranks[name] for name in members if name in ranks))
        if not numbers:
            raise GraphError(f"node {min(members)!r} has no rank behind it: a lab can't build it")
        named = sorted(name for name in members if kinds[name] is Kind.HOST)
        if len(named) > 1:
            raise GraphError(f"hosts {named[0]!r} and {named[1]!r} are linked without a switch")
        name = named[0] if named else min(members & ranks.keys(), key=ranks.__getitem__)
        if numbers[-1] - numbers[0] != len(numbers) - 1:
            raise GraphError(
                f"host {name!r} has the ranks {', '.join(map(str, numbers))}: torchrun gives a "
                "host consecutive ranks"
            )
        found.append((numbers, name, members))
    if not 2 <= len(found) <= MAX_HOSTS:
        raise GraphError(f"a lab has 2 to {MAX_HOSTS} hosts, and here are {len(found)}")
    found.sort()
    hosts = tuple(Host(name, index, numbers) for index, (numbers, name, _) in enumerate(found))
    return hosts, {member: name for _, name, members in found for member in members}


def _components(graph: LinkGraph, kinds: Mapping[str, Kind]) -> Iterator[set[str]]:
    """What hangs together when the switches are taken away."""
    neighbours: dict[str, set[str]] = {
        name: set() for name, kind in kinds.items() if kind is not Kind.SWITCH
    }
    for link in graph.links:
        if link.src in neighbours and link.dst in neighbours:
            neighbours[link.src].add(link.dst)
            neighbours[link.dst].add(link.src)
    left = dict.fromkeys(neighbours)
    while left:
        first = next(iter(left))
        waiting, members = [first], {first}
        while waiting:
            for name in neighbours[waiting.pop()] - members:
                members.add(name)
                waiting.append(name)
        for name in members:
            del left[name]
        yield members


def _wires(graph: LinkGraph, place: Mapping[str, str], switches: set[str]) -> Iterator[Wire]:
    costs = {(link.src, link.dst): link.cost for link in graph.links}
    for src, dst in costs:
        if place[src] == place[dst]:
            continue
        if (dst, src) not in costs:
            raise GraphError(f"link {src}->{dst} has no way back: a lab's links have both")
        # Each pair comes twice: from the host's end, or in the order of the names.
        if src in switches and (dst not in switches or dst < src):
            continue
        yield Wire(
            a=src,
            b=dst,
            a_place=place[src],
            b_place=place[dst],
            forward=costs[src, dst],
            backward=costs[dst, src],
            a_is_host=src not in switches,
        )


def _check_one_wire_a_host(hosts: Iterable[Host], wires: Iterable[Wire]) -> None:
    counts = {host.name: 0 for host in hosts}
    for wire in wires:
        if wire.a_is_host:
            counts[wire.a_place] += 1
    for name, count in counts.items():
        if count != 1:
            raise GraphError(f"host {name!r} has {count} links to switches: a lab's hosts have one")


def _check_tree(places: Iterable[str], wires: Iterable[Wire]) -> None:
    """Bridges send packets around a loop forever, and trainmesh does not run spanning trees."""
    root = {name: name for name in places}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for wire in wires:
        a, b = find(wire.a_place), find(wire.b_place)
        if a == b:
            raise GraphError(
                f"link {wire.a}->{wire.b} closes a loop of switches: a lab needs a tree of them"
            )
        root[a] = b
