"""Topology documents: YAML or JSON text to a LinkGraph, and back. See docs/topology.md.

Values are taken from the parser's nodes one by one, so that every complaint names its line, and
nothing but plain text, numbers and booleans is ever made from a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trainmesh.errors import GraphError
from trainmesh.topology.graph import MAX_LINKS, Kind, Link, LinkGraph, Node, Provenance
from trainmesh.types import LinkCost

__all__ = ["MAX_BYTES", "dump", "load", "load_file"]

MAX_BYTES = 256 * 1024 * 1024
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
T = TypeVar("T")


def load_file(path: Path) -> LinkGraph:
    """Read a topology file.

    Raises:
        GraphError: it can't be read, or is not a valid document.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise GraphError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
        text = path.read_text(encoding="utf-8")
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
    reader = _Reader(source)
    try:
        root = yaml.compose(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise GraphError(f"{source}{line}: not valid YAML: {problem}") from error
    if root is None:
        raise GraphError(f"{source}: the document is empty")
    fields = reader.mapping(root, "the document", {"version", "graph_version", "nodes", "links"})
    if "version" not in fields or reader.scalar(fields["version"], "version") != 1:
        raise GraphError(f"{source}: version must be 1")
    version = (
        reader.scalar(fields["graph_version"], "graph_version")
        if ("graph_version" in fields)
        else 1
    )
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise GraphError(f"{source}: graph_version must be a whole number")
    nodes = _nodes(reader, fields.get("nodes"))
    links = _links(reader, fields.get("links"))
    try:
        return LinkGraph(nodes, links, version=version)
    except GraphError as error:
        raise GraphError(f"{source}: {error}") from error


def dump(graph: LinkGraph) -> dict[str, object]:
    """``graph`` as a document of plain built-ins that ``load`` reads back from its JSON."""
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
                "bandwidth_GBps": link.cost.bandwidth_bytes_per_s / 1e9,
                "alpha_us": link.cost.alpha_s * 1e6,
                "class": link.link_class,
                "source": link.provenance.name.lower(),
                "duplex": False,
            }
            for link in graph.links
        ],
    }


class _Reader:
    """Takes values from YAML nodes; every complaint names source and line."""

    def __init__(self, source: str) -> None:
        self._source = source

    def fail(self, node: yaml.Node, text: str) -> GraphError:
        return GraphError(f"{self._source}:{node.start_mark.line + 1}: {text}")

    def mapping(
        self, node: yaml.Node, what: str, allowed: set[str] | None = None
    ) -> dict[str, yaml.Node]:
        """Keys (text) and value nodes; duplicate and unknown keys are refused."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{what} must be a mapping")
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail(key, f"{what}: keys must be text")
            if key.value in fields:
                raise self.fail(key, f"{what}: {key.value!r} is there twice")
            if allowed is not None and key.value not in allowed:
                names = ", ".join(sorted(allowed))
                raise self.fail(key, f"{what}: unknown key {key.value!r}; known are {names}")
            fields[str(key.value)] = value
        return fields

    def sequence(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, f"{what} must be a list")
        return list(node.value)

    def scalar(self, node: yaml.Node, what: str) -> object:
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, f"{what} must be a single value")
        try:
            value: object = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self.fail(node, f"{what}: {str(error).splitlines()[0]}") from error
        return value

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value or len(node.value) > 256:
            raise self.fail(node, f"{what} must be text of 1 to 256 characters")
        return str(node.value)

    def number(self, node: yaml.Node, what: str, *, positive: bool) -> float:
        value = self.scalar(node, what)
        # YAML 1.1 reads 1e9 without a dot as text.
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(node, f"{what} must be a number, not {value!r}")
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            wanted = "a positive" if positive else "a non-negative"
            raise self.fail(node, f"{what} must be {wanted} finite number, not {value!r}")
        return float(value)

    def one_of(self, node: yaml.Node, what: str, choices: dict[str, T]) -> T:
        text = self.text(node, what)
        if text not in choices:
            raise self.fail(node, f"{what} must be one of {', '.join(choices)}, not {text!r}")
        return choices[text]


def _nodes(reader: _Reader, node: yaml.Node | None) -> list[Node]:
    if node is None:
        raise GraphError(f"{reader._source}: nodes is missing")
    nodes: list[Node] = []
    next_rank = 0
    for name, value in reader.mapping(node, "nodes").items():
        fields = reader.mapping(value, f"node {name!r}", {"kind", "rank"})
        if "kind" not in fields:
            raise reader.fail(value, f"node {name!r}: kind is missing")
        kinds = {kind.value: kind for kind in Kind}
        kind = reader.one_of(fields["kind"], f"node {name!r}: kind", kinds)
        rank = None
        if kind is Kind.RANK:
            rank = _rank(reader, fields["rank"], name) if "rank" in fields else next_rank
            next_rank = rank + 1
        elif "rank" in fields:
            raise reader.fail(value, f"node {name!r}: only nodes of kind rank have a rank")
        nodes.append(Node(name, kind, rank))
    return nodes


def _rank(reader: _Reader, node: yaml.Node, name: str) -> int:
    value = reader.number(node, f"node {name!r}: rank", positive=False)
    if value != int(value):
        raise reader.fail(node, f"node {name!r}: rank must be a whole number")
    return int(value)


def _links(reader: _Reader, node: yaml.Node | None) -> Iterator[Link]:
    if node is None:
        return
    entries = reader.sequence(node, "links")
    if len(entries) > MAX_LINKS:
        raise reader.fail(node, f"{len(entries)} links, more than the {MAX_LINKS} allowed")
    for number, entry in enumerate(entries):
        yield from _link(reader, entry, f"link {number}")


def _link(reader: _Reader, entry: yaml.Node, what: str) -> list[Link]:
    allowed = {
        *("src", "dst", "bandwidth_GBps", "bandwidth_gbps", "alpha_us", "duplex", "class"),
        "source",
    }
    fields = reader.mapping(entry, what, allowed)
    for required in ("src", "dst"):
        if required not in fields:
            raise reader.fail(entry, f"{what}: {required} is missing")
    src, dst = (reader.text(fields[end], f"{what}: {end}") for end in ("src", "dst"))
    what = f"link {src}->{dst}"
    if ("bandwidth_GBps" in fields) == ("bandwidth_gbps" in fields):
        raise reader.fail(entry, f"{what}: give bandwidth_GBps or bandwidth_gbps, one of them")
    scale = {"bandwidth_GBps": 1e9, "bandwidth_gbps": 1e9 / 8}
    unit = next(name for name in scale if name in fields)
    cost = LinkCost(
        alpha_s=_optional(
            fields,
            "alpha_us",
            0.0,
            lambda n: 1e-6 * reader.number(n, f"{what}: alpha_us", positive=False),
        ),
        bandwidth_bytes_per_s=scale[unit]
        * reader.number(fields[unit], f"{what}: {unit}", positive=True),
    )
    link_class = _optional(fields, "class", "ethernet", lambda n: reader.text(n, f"{what}: class"))
    sources = {provenance.name.lower(): provenance for provenance in Provenance}
    provenance = _optional(
        fields,
        "source",
        Provenance.DECLARED,
        lambda n: reader.one_of(n, f"{what}: source", sources),
    )
    both = _optional(
        fields,
        "duplex",
        True,
        lambda n: reader.one_of(n, f"{what}: duplex", {"true": True, "false": False}),
    )
    ends = [(src, dst), (dst, src)] if both else [(src, dst)]
    return [Link(a, b, cost, link_class, provenance) for a, b in ends]


def _optional(
    fields: dict[str, yaml.Node], name: str, default: T, read: Callable[[yaml.Node], T]
) -> T:
    return read(fields[name]) if name in fields else default
