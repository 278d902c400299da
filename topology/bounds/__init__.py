"""The least time that a collective needs on a graph, and what sets it."""

from trainmesh.topology.bounds.tightest import Bound, algbw_limit, bound

__all__ = ["Bound", "algbw_limit", "bound"]
