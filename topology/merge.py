"""Several descriptions of one cluster, merged into one link graph.

Nodes are the same if their names are, links if they lead from and to the same nodes. If several
sources describe one link, the origin of the cost decides: measured wins over discovered, then
declared, then assumed; between equals, the later source wins. An assumed link stands for everything
unknown between its ends. If more is known about both ends, it is left out, unless some rank needs
it. Sources that disagree about a node's kind or rank are refused.
"""

from __future__ import annotations

from collections.abc import Collection

from trainmesh.errors import GraphError
from trainmesh.topology.graph import Link, LinkGraph, Node, Provenance
from trainmesh.topology.importers.fragment import Fragment

__all__ = ["merge"]


def merge(*sources: LinkGraph | Fragment) -> LinkGraph:
    """One graph of all ``sources``; nodes and links keep the order in which they first appear.

    Its version is one more than the highest of the graphs merged, so that it counts as newer
    than each of them, and 1 if there are only fragments.

    Raises:
        GraphError: two sources disagree about a node's kind or rank, two nodes have one rank,
            or what comes out is not a usable graph.
    """
    nodes: dict[str, Node] = {}
    links: dict[str, Link] = {}
    for source in sources:
        for node in source.nodes:
            _check_same(nodes.setdefault(node.name, node), node)
        for link in source.links:
            before = links.get(link.name)
            if before is None or link.provenance >= before.provenance:
                links[link.name] = link
    _check_ranks(nodes)
    versions = [source.version for source in sources if isinstance(source, LinkGraph)]
    version = max(versions, default=0) + 1
    try:
        return LinkGraph(nodes.values(), _known(links.values()), version=version)
    except GraphError:
        return LinkGraph(nodes.values(), links.values(), version=version)


def _known(links: Collection[Link]) -> list[Link]:
    """Without the assumed links between nodes of which more is known."""
    surely = [link for link in links if link.provenance > Provenance.ASSUMED]
    ends = {end for link in surely for end in (link.src, link.dst)}
    return [
        link
        for link in links
        if link.provenance > Provenance.ASSUMED or not {link.src, link.dst} <= ends
    ]


def _check_same(known: Node, node: Node) -> None:
    if known.kind is not node.kind:
        raise GraphError(
            f"node {node.name!r} is a {known.kind} in one source and a {node.kind} in another; "
            "rename one of them"
        )
    if known.rank != node.rank:
        raise GraphError(
            f"node {node.name!r} is rank {known.rank} in one source and rank {node.rank} in "
            "another; give the sources of one job"
        )


def _check_ranks(nodes: dict[str, Node]) -> None:
    owner: dict[int, str] = {}
    for node in nodes.values():
        if node.rank is not None and (name := owner.setdefault(node.rank, node.name)) != node.name:
            raise GraphError(
                f"rank {node.rank} is node {name!r} in one source and {node.name!r} in another; "
                "give both the same host name"
            )
