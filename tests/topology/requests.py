"""Executors that cut nothing into chunks, so that times are those of whole messages."""

from trainmesh.topology.request import Executors
from trainmesh.types import Algorithm

PLAIN = Executors(
    frozenset({Algorithm.NATIVE, Algorithm.RING}),
    pipelined=False,
    max_rings=1,
    max_levels=1,
    unequal_places=False,
)
