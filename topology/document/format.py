"""Topology documents: YAML or JSON text to a LinkGraph, and back. See docs/topology.md.

::

    version: 1
    nodes:
      g0: {kind: rank}             # or switch, nic, host; optional rank: 0 (default: in order)
      sw: {kind: switch}
    links:                         # bandwidth_GBps in 10^9 byte/s, or bandwidth_gbps in 10^9 bit/s
      - {src: g0, dst: sw, bandwidth_GBps: 25, alpha_us: 5, duplex: true, class: ethernet}

``duplex`` (default true) declares both directions, ``alpha_us`` defaults to 0, ``class`` to
ethernet. ``timeline`` is for labs (see ``timeline.py``). ``graph_version`` and a link's ``source``
are written by ``dump`` only. Every complaint names its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from trainmesh.bounded_read import read_bounded
from trainmesh.errors import GraphError
from trainmesh.topology.document.text import Value, parse
from trainmesh.topology.document.timeline import LinkChange, read_timeline
from trainmesh.topology.document.values import (
    DocumentProblem,
    label,
    mapping,
    number,
    one_of,
    required,
    whole,
)
from trainmesh.topology.graph import (
    MAX_LINKS,
    Kind,
    Link,
    LinkGraph,
    LinkHealth,
    Node,
    Provenance,
    link_problem,
    node_problem,
)
from trainmesh.types import MAX_INT, MAX_RANKS, LinkCost

__all__ = ["MAX_BYTES", "dump", "load", "load_file", "load_file_with_timeline"]

MAX_BYTES = 128 * 1024 * 1024
"""Of a file: far more than a topology of the largest clusters takes."""
UNITS = {"bandwidth_GBps": 1e9, "bandwidth_gbps": 1e9 / 8}
"""Each in bytes a second."""
DOCUMENT_KEYS = dict.fromkeys(("version", "graph_version", "nodes", "links", "timeline")).keys()
NODE_KEYS = dict.fromkeys(("kind", "rank")).keys()
LINK_KEYS = dict.fromkeys(
    ("src", "dst", *UNITS, "alpha_us", "duplex", "class", "source", "health")
).keys()
KINDS = {kind.value: kind for kind in Kind}
HEALTHS = {health.value: health for health in LinkHealth}
SOURCES = {provenance.name.lower(): provenance for provenance in Provenance}
MAX_NAMED = 3
"""Of the nodes that one complaint is about, beside the first."""
SWITCH = {"true": True, "false": False}


def load_file(path: Path, *, to_plan: bool = False, pipe_s: float | None = None) -> LinkGraph:
    """Read a topology file.

    Args:
        path: The file.
        to_plan: Whether its ranks must be able to do without the links in quarantine.
        pipe_s: How long the bytes of a pipe are awaited, as by ``read_bounded``.

    Raises:
        GraphError: it can't be read, is not a valid document, or can't be planned with.
    """
    return _load(_read(path, pipe_s), source=str(path), to_plan=to_plan)[0]


def load_file_with_timeline(path: Path) -> tuple[LinkGraph, tuple[LinkChange, ...]]:
    """Read a topology file, and what is to happen to its links in a lab.

    Raises:
        GraphError: it can't be read, or is not a valid document.
    """
    return _load(_read(path, None), source=str(path))


def _read(path: Path, pipe_s: float | None) -> str:
    try:
        return read_bounded(path, MAX_BYTES, pipe_s=pipe_s).decode("utf-8")
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: not a text file in UTF-8") from error


def load(text: str, *, source: str) -> LinkGraph:
    """Parse a topology document.

    Raises:
        GraphError: not YAML or JSON, not of the documented form, or not a usable graph; the
            message begins with ``source`` and, where there is one, the line.
    """
    return _load(text, source=source)[0]


def _load(
    text: str, *, source: str, to_plan: bool = False
) -> tuple[LinkGraph, tuple[LinkChange, ...]]:
    document = parse(text, source=source)
    try:
        graph, timeline = _contents(document.root)
        if to_plan:
            _check_usable(graph, document.root)
        return graph, timeline
    except DocumentProblem as problem:
        line = document.line(problem.path)
        raise GraphError(f"{source}:{line}: {problem}") from problem
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from error


def dump(graph: LinkGraph) -> dict[str, object]:
    """``graph`` as a document of plain built-ins that ``load`` reads back from its JSON.

    Costs have 12 significant digits, so that the graph read back has the same digest although
    the units differ.
    """
    return {
        "version": 1,
        "graph_version": graph.version,
        "nodes": {
            node.name: {"kind": node.kind.value}
            | ({"rank": node.rank} if node.rank is not None else {})
            for node in graph.nodes
        },
        "links": [
            {
                "src": link.src,
                "dst": link.dst,
                "bandwidth_GBps": _in_unit(link.cost.bandwidth_bytes_per_s, 1e9),
                "alpha_us": _in_unit(link.cost.alpha_s, 1e-6),
                "class": link.link_class,
                "source": link.provenance.name.lower(),
                **({} if link.health is LinkHealth.HEALTHY else {"health": link.health.value}),
                "duplex": False,
            }
            for link in graph.links
        ],
    }


def _in_unit(value: float, unit: float) -> float:
    """Rounded before and after, so that the unit's rounding error can't show."""
    return float(f"{float(f'{value:.11e}') / unit:.11e}")


def _contents(root: Value) -> tuple[LinkGraph, tuple[LinkChange, ...]]:
    fields = mapping(root, "the document", DOCUMENT_KEYS)
    if "version" not in fields:
        raise DocumentProblem("version must be 1")
    if fields["version"] != "1":
        raise DocumentProblem("version must be 1", "version")
    if "nodes" not in fields:
        raise DocumentProblem("nodes is missing")
    graph_version = 1
    if "graph_version" in fields:
        graph_version = whole(fields, "graph_version", "graph_version", at_most=MAX_INT)
    nodes = _nodes(fields["nodes"])
    links = _links(fields.get("links", []), nodes)
    _check_linked(nodes, links)
    timeline: tuple[LinkChange, ...] = ()
    if "timeline" in fields:
        timeline = read_timeline(fields["timeline"], {(link.src, link.dst) for link in links})
    return LinkGraph(nodes.values(), links, version=graph_version), timeline


def _nodes(value: Value) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    owner: dict[int, str] = {}
    next_rank = 0
    path: tuple[str, ...] = ("nodes",)
    try:
        for name, entry in mapping(value, "nodes").items():
            path = ("nodes", name)
            node = _node(name, entry, next_rank)
            if problem := node_problem(node, nodes):
                raise DocumentProblem(problem)
            if node.rank is not None:
                if (other := owner.setdefault(node.rank, name)) != name:
                    raise DocumentProblem(
                        f"node {name!r}: rank {node.rank} is that of node {other!r}"
                    )
                next_rank = node.rank + 1
            nodes[name] = node
    except DocumentProblem as problem:
        raise problem.inside(path) from problem
    return nodes


def _node(name: str, entry: Value, next_rank: int) -> Node:
    what = f"node {name[:40]!r}"
    fields = mapping(entry, what, NODE_KEYS)
    required(fields, "kind", what)
    kind = one_of(fields, "kind", f"{what}: kind", KINDS)
    rank = next_rank if kind is Kind.RANK else None
    if "rank" in fields:
        rank = whole(fields, "rank", f"{what}: rank", at_most=MAX_RANKS - 1)
    return Node(name, kind, rank)


def _links(value: Value, nodes: Mapping[str, Node]) -> list[Link]:
    if not isinstance(value, list):
        raise DocumentProblem("links must be a list", "links")
    links: dict[str, Link] = {}
    path: tuple[str | int, ...] = ("links",)
    try:
        for place, entry in enumerate(value):
            path = ("links", place)
            for link in _link(entry):
                if problem := link_problem(link, nodes, links):
                    raise DocumentProblem(problem)
                links[link.name] = link
            if len(links) > MAX_LINKS:
                raise DocumentProblem(
                    f"more than the {MAX_LINKS} links allowed, counted by direction"
                )
    except DocumentProblem as problem:
        raise problem.inside(path) from problem
    return list(links.values())


def _link(entry: Value) -> Iterable[Link]:
    fields = mapping(entry, "link", LINK_KEYS)
    for end in ("src", "dst"):
        required(fields, end, "link")
    src, dst = label(fields, "src", "src"), label(fields, "dst", "dst")
    what = f"link {src[:40]}->{dst[:40]}"
    cost = _cost(fields, what)
    link_class, provenance, duplex = "ethernet", Provenance.DECLARED, True
    if "class" in fields:
        link_class = label(fields, "class", f"{what}: class")
    if "source" in fields:
        provenance = one_of(fields, "source", f"{what}: source", SOURCES)
    health = LinkHealth.HEALTHY
    if "health" in fields:
        health = one_of(fields, "health", f"{what}: health", HEALTHS)
    if "duplex" in fields:
        duplex = one_of(fields, "duplex", f"{what}: duplex", SWITCH)
    there = Link(src, dst, cost, link_class, provenance, health)
    return (there, Link(dst, src, cost, link_class, provenance, health)) if duplex else (there,)


def _cost(fields: Mapping[str, Value], what: str) -> LinkCost:
    given = [unit for unit in UNITS if unit in fields]
    if len(given) != 1:
        raise DocumentProblem(f"{what}: give bandwidth_GBps or bandwidth_gbps, one of them")
    [unit] = given
    bandwidth = number(fields, unit, f"{what}: {unit}", positive=True)
    alpha_us = 0.0
    if "alpha_us" in fields:
        alpha_us = number(fields, "alpha_us", f"{what}: alpha_us", positive=False)
    return LinkCost(alpha_s=alpha_us * 1e-6, bandwidth_bytes_per_s=bandwidth * UNITS[unit])


def _check_linked(nodes: Mapping[str, Node], links: Iterable[Link]) -> None:
    """Names all the ranks that no link enters or leaves, and the switches that are linked only
    among themselves: mistakes that each have a line."""
    neighbours: dict[str, list[str]] = {}
    entered: set[str] = set()
    for link in links:
        neighbours.setdefault(link.src, []).append(link.dst)
        neighbours.setdefault(link.dst, []).append(link.src)
        entered.add(link.dst)
    ranks = [node.name for node in nodes.values() if node.kind is Kind.RANK]
    if len(ranks) > 1:
        left = {link.src for link in links}
        _refuse([name for name in ranks if name not in entered], "no link leads to rank")
        _refuse([name for name in ranks if name not in left], "no link leads away from rank")
    if ranks:
        waiting, reached = list(ranks), set(ranks)
        while waiting:
            for name in neighbours.get(waiting.pop(), ()):
                if name not in reached:
                    reached.add(name)
                    waiting.append(name)
        _refuse([name for name in neighbours if name not in reached], "no rank is linked to node")


def _check_usable(graph: LinkGraph, root: Value) -> None:
    """Of links in quarantine that the ranks can't do without, the first has the line."""
    try:
        graph.usable()
    except GraphError as error:
        links = root.get("links") if isinstance(root, dict) else None
        for place, entry in enumerate(links if isinstance(links, list) else ()):
            if isinstance(entry, dict) and entry.get("health") == LinkHealth.QUARANTINED.value:
                raise DocumentProblem(str(error), "links", place) from error
        raise


def _refuse(names: list[str], what: str) -> None:
    if not names:
        return
    more = ""
    if others := names[1:]:
        shown = ", ".join(repr(name) for name in others[:MAX_NAMED])
        more = f" and {len(others)} more ({shown}{', ...' if len(others) > MAX_NAMED else ''})"
    raise DocumentProblem(
        f"{what} {names[0]!r}{more}: the graph is disconnected", "nodes", names[0]
    )
