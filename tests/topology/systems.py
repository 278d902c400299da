"""The reference systems of systems.toml as link graphs."""

import tomllib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NotRequired, TypedDict

from tests.topology import graphs
from tests.topology.forest.systems import DGX1V, MI250
from trainmesh.topology.graph import LinkGraph


class System(TypedDict):
    """One of systems.toml, which says what the keys mean."""

    name: str
    build: str
    args: list[float | list[float]]
    allgather: str
    sending: int
    allreduce: str
    kind: str
    ring: NotRequired[str]


TABLE: list[System] = tomllib.loads(Path(__file__).with_name("systems.toml").read_text())["system"]
RING_BIT = (1, 2, 4)


def build(system: System) -> LinkGraph:
    graph: LinkGraph = globals()[system["build"]](*system["args"])
    return graph


def exact(text: str) -> float:
    return float(Fraction(text))


def star(nics: Sequence[float]) -> LinkGraph:
    return graphs.star(nics)


def hgx(hosts: int, nic0: float) -> LinkGraph:
    return graphs.hgx(hosts, nic0)


def circle(count: int) -> LinkGraph:
    return graphs.direct([(rank, (rank + 1) % count, 1) for rank in range(count)])


def hypercube() -> LinkGraph:
    return graphs.direct([(a, a ^ bit, 1) for a in range(8) for bit in RING_BIT if not a & bit])


def torus(side: int) -> LinkGraph:
    steps = [(i, j) for i in range(side) for j in range(side)]
    across = [(i * side + j, i * side + (j + 1) % side, 1) for i, j in steps]
    down = [(i * side + j, (i + 1) % side * side + j, 1) for i, j in steps]
    return graphs.direct(across + down)


def mesh(side: int) -> LinkGraph:
    across = [(i * side + j, i * side + j + 1, 1) for i in range(side) for j in range(side - 1)]
    down = [(i * side + j, (i + 1) * side + j, 1) for i in range(side - 1) for j in range(side)]
    return graphs.direct(across + down)


def dgx1v(link_0_4: float) -> LinkGraph:
    links = [(a, b, link_0_4 if (a, b) == (0, 4) else GBps) for a, b, GBps in DGX1V]
    return graphs.direct([link for link in links if link[2]])


def mi250() -> LinkGraph:
    return graphs.direct([(a, b, 50 * links) for a, b, links in MI250])


def two_racks(uplink: float, host0: float) -> LinkGraph:
    return graphs.racks(range(8), uplink=uplink, slow_host=host0)


def four_racks(uplink: float) -> LinkGraph:
    return graphs.racks(range(16), uplink=uplink, nic=100)
