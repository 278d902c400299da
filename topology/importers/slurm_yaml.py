"""Slurm's ``topology.yaml`` (25.05 and newer), which wins over a ``topology.conf`` beside it.

A list of topologies, each of one kind::

    - topology: fabric
      cluster_default: true
      tree: {switches: [{switch: root, children: "s[1-2]"}, {switch: s1, nodes: "n[01-02]"}]}
    - topology: racks
      block: {block_sizes: [18], blocks: [{block: b1, nodes: "n[01-18]"}]}

Which of several a job has, its partition says, so the cluster's default is read, else the first.
"""

from __future__ import annotations

import re

from trainmesh.errors import GraphError
from trainmesh.topology.document.text import Document, Value
from trainmesh.topology.document.text import parse as parse_document
from trainmesh.topology.graph import MAX_NAME
from trainmesh.topology.importers.slurm import expand
from trainmesh.topology.importers.slurm_topology import Switch, joined

__all__ = ["is_yaml", "parse"]

KINDS = {"tree": ("switches", "switch"), "block": ("blocks", "block")}
"""What holds their entries, and what names an entry."""
OTHERS = ("flat", "ring", "torus3d")
"""Kinds of topology without switches."""
TRUE = (True, "true", "True", "yes", "on")
Place = tuple[str | int, ...]


def is_yaml(text: str) -> bool:
    """Whether ``text`` is a ``topology.yaml``: lines of a ``topology.conf`` begin with a word and
    an equals sign."""
    lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return re.match(r"[-\[{%]", first) is not None


def parse(text: str, *, source: str) -> tuple[tuple[Switch, ...], list[str]]:
    """The switches of one of its topologies, each after those below it, and notes.

    Raises:
        GraphError: no such document, a topology without switches, a switch twice or below itself,
            or one that is nowhere; with source and line.
    """
    document = parse_document(text, source=source)
    found = _chosen(document, source)
    item = _mapping(document, (found,), source)
    name = str(item.get("topology", ""))
    notes = []
    if isinstance(document.root, list) and len(document.root) > 1:
        which = "the cluster's default" if item.get("cluster_default") in TRUE else "the first"
        notes.append(f"topology {name!r} of {len(document.root)} was read, {which}")
    switches, are_blocks = _switches(document, (found,), item, source)
    return joined(switches, source, are_blocks=are_blocks), notes


def _chosen(document: Document, source: str) -> int:
    """The place of the topology that is the cluster's."""
    if not isinstance(document.root, list) or not document.root:
        raise GraphError(f"{source}: not a list of topologies; give Slurm's topology.yaml")
    for place in range(len(document.root)):
        if _mapping(document, (place,), source).get("cluster_default") in TRUE:
            return place
    return 0


def _switches(
    document: Document, place: Place, item: dict[str, Value], source: str
) -> tuple[dict[str, Switch], bool]:
    """By name; and whether they are blocks."""
    kinds = [kind for kind in (*KINDS, *OTHERS) if kind in item]
    where = f"{source}:{document.line(place)}"
    if len(kinds) != 1 or kinds[0] in OTHERS:
        what = ", ".join(kinds) or "no kind that is known"
        raise GraphError(
            f"{where}: a topology of {what}; tree and block say which switch joins what (without "
            "them: topology import slurm)"
        )
    kind = kinds[0]
    holder, label = KINDS[kind]
    entries = _mapping(document, (*place, kind), source).get(holder)
    if not isinstance(entries, list) or not entries:
        raise GraphError(f"{where}: {kind} has no list {holder!r}")
    found: dict[str, Switch] = {}
    for number in range(len(entries)):
        at = (*place, kind, holder, number)
        switch = _switch(document, at, label, source)
        if switch.name in found:
            raise GraphError(f"{switch.where}: {switch.name[:60]!r} is there twice")
        found[switch.name] = switch
    return found, kind == "block"


def _switch(document: Document, place: Place, label: str, source: str) -> Switch:
    entry = _mapping(document, place, source)
    where = f"{source}:{document.line(place)}"
    texts = {
        key: entry[key] for key in (label, "nodes", "children") if entry.get(key) not in (None, "")
    }
    name = texts.get(label)
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise GraphError(f"{where}: give {label!r} a name of up to {MAX_NAME} characters")
    below = []
    for key in ("nodes", "children"):
        text = texts.get(key, "")
        if not isinstance(text, str):
            raise GraphError(f"{where}: {key!r} must be a node list such as n[1-18]")
        below.append(tuple(expand(text, what=where)) if text else ())
    nodes, children = below
    if not nodes and not children:
        raise GraphError(f"{where}: {name[:60]!r} has neither 'nodes' nor 'children'")
    return Switch(name, nodes, children, where)


def _mapping(document: Document, place: Place, source: str) -> dict[str, Value]:
    """What is at ``place``, which must be a mapping."""
    value: Value = document.root
    for step in place:
        if isinstance(value, list) and isinstance(step, int):
            value = value[step]
        elif isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
    if not isinstance(value, dict):
        raise GraphError(f"{source}:{document.line(place)}: not a mapping such as 'tree: {{...}}'")
    return value
