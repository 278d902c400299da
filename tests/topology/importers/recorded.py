"""The recorded files, and what tests ask of links."""

from pathlib import Path

from trainmesh.topology.graph import LinkGraph

DATA = Path(__file__).parent / "data"


def text(name: str) -> str:
    return (DATA / name).read_text()


def GBps(graph: LinkGraph, link: str) -> float:
    return graph.link(link).cost.bandwidth_bytes_per_s / 1e9


def neighbours(graph: LinkGraph, node: str) -> set[str]:
    return {link.dst for link in graph.links if link.src == node}
