"""Models at one URL: which state belongs to the server behind it, and which to each model.

The server's state is its capacity (``max_inflight``), its requests in flight, and whether it
refuses connections or says that it is full. Each model has its own estimates, and the faults that
one model may have alone: errors, slowness, broken streams.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainmesh.serving.config.addresses import parse_url, same_server
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.endpoint_states import EndpointStates

__all__ = ["link"]


def link(rosters: Iterable[EndpointStates]) -> None:
    """Make endpoints of different models with one URL share what belongs to the server. Those that
    are in none of ``rosters`` any more must be unlinked (``EndpointStates.unlink``)."""
    groups: dict[str, list[tuple[EndpointStates, Endpoint]]] = {}
    for endpoint_states in rosters:
        for endpoint in endpoint_states.endpoints:
            key = same_server(parse_url(endpoint.config.url))
            groups.setdefault(key, []).append((endpoint_states, endpoint))
    for members in groups.values():
        for endpoint_states, endpoint in members:
            others = [pair for pair in members if pair[1] is not endpoint]
            endpoint.twins = [twin for _, twin in others]
            endpoint_states.twins[endpoint] = others
    for members in groups.values():
        for _, endpoint in members:
            endpoint.sum()
