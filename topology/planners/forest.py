"""forest: stub until the packing lands."""

from __future__ import annotations

from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.request import Request
from trainmesh.types import Plan


def plan(graph: LinkGraph, request: Request) -> Plan | None:
    return None
