"""Topology documents: YAML or JSON text to a LinkGraph, and back. See docs/topology.md.

::

    version: 1
    nodes:
      g0: {kind: rank}             # or switch, nic, host; optional rank: 0 (default: in order)
      sw: {kind: switch}
    links:                         # bandwidth_GBps in 10^9 byte/s, or bandwidth_gbps in 10^9 bit/s
      - {src: g0, dst: sw, bandwidth_GBps: 25, alpha_us: 5, duplex: true, class: ethernet}

``duplex`` (default true) declares both directions, ``alpha_us`` defaults to 0, ``class`` to
ethernet. ``graph_version`` and a link's ``source`` are written by ``dump`` only. Every complaint
names its line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from trainmesh.errors import GraphError
from trainmesh.topology.graph import (
    MAX_NAME,
    Kind,
    Link,
    LinkGraph,
    Node,
    Provenance,
    link_problem,
    node_problem,
)
from trainmesh.topology.text import Item, parse
from trainmesh.types import MAX_INT, MAX_RANKS, LinkCost

__all__ = ["MAX_BYTES", "dump", "load", "load_file"]

MAX_BYTES = 128 * 1024 * 1024
UNITS = {"bandwidth_GBps": 1e9, "bandwidth_gbps": 1e9 / 8}
LINK_KEYS = ("src", "dst", *UNITS, "alpha_us", "duplex", "class", "source")
KINDS = {kind.value: kind for kind in Kind}
SOURCES = {provenance.name.lower(): provenance for provenance in Provenance}
SWITCH = {"true": True, "false": False}
T = TypeVar("T")


def load_file(path: Path) -> LinkGraph:
    """Read a topology file.

    Raises:
        GraphError: it can't be read, or is not a valid document.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise GraphError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
        text = data.decode("utf-8")
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: not a text file in UTF-8") from error
    return load(text, source=str(path))


def load(text: str, *, source: str) -> LinkGraph:
    """Parse a topology document.

    Raises:
        GraphError: not YAML or JSON, not of the documented form, or not a usable graph; the
            message begins with ``source`` and, where there is one, the line.
    """
    root = parse(text, source=source)
    try:
        return _graph(root)
    except _Problem as problem:
        raise GraphError(f"{source}:{problem.line}: {problem}") from problem
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
                "duplex": False,
            }
            for link in graph.links
        ],
    }


def _in_unit(value: float, unit: float) -> float:
    """Rounded before and after, so that the unit's rounding error can't show."""
    return float(f"{float(f'{value:.11e}') / unit:.11e}")


class _Problem(Exception):
    """What is wrong at ``line``."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def _graph(root: Item) -> LinkGraph:
    fields = _mapping(root, "the document", ("version", "graph_version", "nodes", "links"))
    version = fields.get("version")
    if version is None or version.value != "1":
        raise _Problem(root.line if version is None else version.line, "version must be 1")
    if "nodes" not in fields:
        raise _Problem(root.line, "nodes is missing")
    graph_version = 1
    if "graph_version" in fields:
        graph_version = _whole(fields["graph_version"], "graph_version", at_most=MAX_INT)
    nodes = _nodes(fields["nodes"])
    links = _links(fields["links"], nodes) if "links" in fields else []
    return LinkGraph(nodes.values(), links, version=graph_version)


def _nodes(item: Item) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    owner: dict[int, str] = {}
    next_rank = 0
    for name, entry in _mapping(item, "nodes").items():
        what = f"node {name[:40]!r}"
        fields = _mapping(entry, what, ("kind", "rank"))
        kind = _one_of(_required(entry, fields, "kind", what), f"{what}: kind", KINDS)
        rank = None
        if "rank" in fields:
            rank = _whole(fields["rank"], f"{what}: rank", at_most=MAX_RANKS - 1)
        elif kind is Kind.RANK:
            rank = next_rank
        node = Node(name, kind, rank)
        if problem := node_problem(node, nodes):
            raise _Problem(entry.line, problem)
        if rank is not None:
            if rank in owner:
                raise _Problem(entry.line, f"{what}: rank {rank} is that of node {owner[rank]!r}")
            owner[rank] = name
            next_rank = rank + 1
        nodes[name] = node
    return nodes


def _links(item: Item, nodes: Mapping[str, Node]) -> list[Link]:
    if not isinstance(item.value, list):
        raise _Problem(item.line, "links must be a list")
    links: dict[str, Link] = {}
    for entry in item.value:
        for link in _link(entry):
            if problem := link_problem(link, nodes, links):
                raise _Problem(entry.line, problem)
            links[link.name] = link
    return list(links.values())


def _link(entry: Item) -> list[Link]:
    fields = _mapping(entry, "link", LINK_KEYS)
    src, dst = (_text(_required(entry, fields, end, "link"), end) for end in ("src", "dst"))
    what = f"link {src[:40]}->{dst[:40]}"
    cost = _cost(entry, fields, what)
    link_class, provenance, duplex = "ethernet", Provenance.DECLARED, True
    if "class" in fields:
        link_class = _text(fields["class"], f"{what}: class")
    if "source" in fields:
        provenance = _one_of(fields["source"], f"{what}: source", SOURCES)
    if "duplex" in fields:
        duplex = _one_of(fields["duplex"], f"{what}: duplex", SWITCH)
    ends = [(src, dst), (dst, src)] if duplex else [(src, dst)]
    return [Link(a, b, cost, link_class, provenance) for a, b in ends]


def _cost(entry: Item, fields: Mapping[str, Item], what: str) -> LinkCost:
    given = [unit for unit in UNITS if unit in fields]
    if len(given) != 1:
        raise _Problem(entry.line, f"{what}: give bandwidth_GBps or bandwidth_gbps, one of them")
    [unit] = given
    bandwidth = _number(fields[unit], f"{what}: {unit}", positive=True)
    alpha_us = 0.0
    if "alpha_us" in fields:
        alpha_us = _number(fields["alpha_us"], f"{what}: alpha_us", positive=False)
    return LinkCost(alpha_s=alpha_us * 1e-6, bandwidth_bytes_per_s=bandwidth * UNITS[unit])


def _mapping(item: Item, what: str, allowed: Sequence[str] | None = None) -> dict[str, Item]:
    if not isinstance(item.value, dict):
        raise _Problem(item.line, f"{what} must be a mapping")
    if allowed is not None:
        for key, value in item.value.items():
            if key not in allowed:
                names = ", ".join(allowed)
                text = f"{what}: unknown key {key[:40]!r}; known are {names}"
                raise _Problem(value.line, text)
    return item.value


def _required(item: Item, fields: Mapping[str, Item], name: str, what: str) -> Item:
    if name not in fields:
        raise _Problem(item.line, f"{what}: {name} is missing")
    return fields[name]


def _scalar(item: Item, what: str) -> str:
    if not isinstance(item.value, str):
        raise _Problem(item.line, f"{what} must be a single value")
    return item.value


def _text(item: Item, what: str) -> str:
    text = _scalar(item, what)
    if not 0 < len(text) <= MAX_NAME or not text.isprintable():
        raise _Problem(item.line, f"{what} must be 1 to {MAX_NAME} printable characters")
    return text


def _whole(item: Item, what: str, *, at_most: int) -> int:
    text = _scalar(item, what)
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= at_most):
        text = f"{what} must be a whole number up to {at_most}, not {text[:40]!r}"
        raise _Problem(item.line, text)
    return int(text)


def _number(item: Item, what: str, *, positive: bool) -> float:
    text = _scalar(item, what)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        wanted = "a positive" if positive else "a non-negative"
        raise _Problem(item.line, f"{what} must be {wanted} finite number, not {text[:40]!r}")
    return value


def _one_of(item: Item, what: str, choices: Mapping[str, T]) -> T:
    text = _scalar(item, what)
    if text not in choices:
        names = ", ".join(choices)
        raise _Problem(item.line, f"{what} must be one of {names}, not {text[:40]!r}")
    return choices[text]
