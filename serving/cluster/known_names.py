"""Which names the cluster knows, and the effect of taking one out; for admins' verdicts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from trainmesh.errors import GraphError, WireError
from trainmesh.serving.cluster.peers import PeerEndpoint, RouterState
from trainmesh.serving.cluster.verdicts import (
    QUARANTINE,
    SubjectKind,
    Verdict,
    in_force,
    read_verdicts,
)
from trainmesh.store.base import Store
from trainmesh.topology.document import load
from trainmesh.topology.graph import LinkGraph
from trainmesh.wire import decode

__all__ = ["Known", "emptied", "known_in"]

JOBS = "/trainmesh/jobs/"
ROUTERS = "/trainmesh/serve/"


@dataclass(frozen=True)
class Known:
    """Link graphs of running jobs, places of running routers, verdicts in force."""

    graphs: tuple[LinkGraph, ...] = ()
    places: tuple[PeerEndpoint, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    def names(self, kind: SubjectKind) -> frozenset[str]:
        """Of links (in one direction and in both), nodes or endpoints; empty where nobody says."""
        if kind is SubjectKind.ENDPOINT:
            return frozenset(place.name for place in self.places)
        if kind is SubjectKind.NODE:
            own = (place.node for place in self.places if place.node)
            return frozenset([*own, *(node.name for g in self.graphs for node in g.nodes)])
        links = [link for graph in self.graphs for link in graph.links]
        both = (f"{link.src}<->{link.dst}" for link in links)
        return frozenset([*both, *(link.name for link in links)])


def known_in(store: Store, now_unix_s: float) -> Known:
    """What the store's jobs and routers say; what makes no sense is left out.

    Raises:
        StoreError: the store does not answer.
    """
    entries, _ = store.list(QUARANTINE)
    verdicts, _ = read_verdicts({entry.key: entry.value for entry in entries})
    graphs = (
        _graph(entry.value)
        for entry in store.list(JOBS)[0]
        if entry.key.endswith("/graph")  # or the report of a node of that name, which is none
    )
    return Known(
        graphs=tuple(graph for graph in graphs if graph is not None),
        places=tuple(
            place
            for entry in store.list(ROUTERS)[0]
            if "/routers/" in entry.key
            for place in _places(entry.value)
        ),
        verdicts=tuple(in_force(verdicts, now_unix_s)),
    )


def emptied(known: Known, kind: SubjectKind, subject: str) -> list[str]:
    """Models of running routers that have open endpoints now and would have none without
    ``subject``. Ways over links are not known here, so a link empties nothing."""
    left: dict[str, list[PeerEndpoint]] = defaultdict(list)
    for place in known.places:
        if place.open and not any(_is_on(place, v.kind, v.subject) for v in known.verdicts):
            left[place.model].append(place)
    return sorted(
        model
        for model, places in left.items()
        if all(_is_on(place, kind, subject) for place in places)
    )


def _is_on(place: PeerEndpoint, kind: SubjectKind, subject: str) -> bool:
    if kind is SubjectKind.LINK:
        return False
    return subject == (place.name if kind is SubjectKind.ENDPOINT else place.node)


def _graph(document: bytes) -> LinkGraph | None:
    try:
        return load(document.decode(), source="graph")
    except (GraphError, UnicodeDecodeError):
        return None


def _places(value: bytes) -> tuple[PeerEndpoint, ...]:
    try:
        return decode(value, RouterState, what="router").places
    except WireError:
        return ()
