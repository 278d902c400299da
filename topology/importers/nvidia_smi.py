"""The matrix of ``nvidia-smi topo -m``: which GPUs have NVLinks, and what devices share.

::

            GPU0    GPU1    NIC0    CPU Affinity    NUMA Affinity   GPU NUMA ID
    GPU0     X      NV12    PXB     0-31            0               N/A
    GPU1    NV12     X      SYS     32-63           1               N/A
    NIC0    PXB     SYS      X

    NIC Legend:
      NIC0: mlx5_0

It says how many NVLinks there are and how the PCIe tree is made, but no speeds: those of PCIe,
CPUs and NICs are assumed, those of an NVLink follow from the GPU's compute capability.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

from trainmesh.errors import GraphError
from trainmesh.topology.graph import MAX_NAME, Kind, Provenance
from trainmesh.topology.importers.fragment import NETWORK, Fragment, Pen, rank_name
from trainmesh.topology.importers.hardware import (
    ASSUMED_NETWORK,
    ASSUMED_PCIE,
    max_nvlinks,
    network_cost,
    nvlink_cost,
    nvlink_GBps,
)
from trainmesh.topology.importers.nearness import Nearness, plant
from trainmesh.topology.importers.smi_matrix import Matrix, read_matrix
from trainmesh.types import MAX_RANKS

__all__ = ["parse"]

MOST_NVLINKS = 18
"""Of any GPU so far; more of them in a row of the matrix are seen through a switch."""
NEAR = {level.name: level for level in Nearness} | {"SOC": Nearness.SYS}
"""SOC is what drivers before 384 called SYS."""


def parse(
    text: str, *, source: str, host: str, first_rank: int = 0, sm: int | None = None
) -> Fragment:
    """The host that a matrix describes; GPU0 is rank ``first_rank``, and so on.

    Args:
        text: What nvidia-smi printed, colours and all.
        source: What complaints call it.
        host: What the host is called.
        first_rank: Rank of GPU0.
        sm: Compute capability of the GPUs (80 for 8.0), from which the speed and the number of
            NVLinks follow; guessed from the matrix if None.

    Raises:
        GraphError: no such matrix; with source and line.
    """
    matrix = read_matrix(text, source=source)
    gpus = [name for name in matrix.devices if name.startswith("GPU")]
    if first_rank + len(gpus) > MAX_RANKS:
        raise GraphError(f"{source}: ranks go to {MAX_RANKS - 1}")
    pen = Pen()
    node: dict[str, str] = {}
    for place, gpu in enumerate(gpus):
        rank = first_rank + place
        node[gpu] = pen.node(rank_name(host, rank), Kind.RANK, rank)
    for nic in matrix.devices:
        if nic not in node:
            node[nic] = pen.node(f"{host}/{matrix.names.get(nic, nic)}"[:MAX_NAME], Kind.NIC)
            pen.node(NETWORK, Kind.SWITCH)
            cost = network_cost(ASSUMED_NETWORK)
            pen.both_ways(node[nic], NETWORK, cost, "network", Provenance.ASSUMED)
    _nvlinks(matrix, gpus, node, host, sm, pen)
    devices = dict.fromkeys(node.values(), ASSUMED_PCIE)
    near = {(node[a], node[b]): shared for (a, b), shared in _near(matrix, gpus).items()}
    plant(pen, host, devices, [node[gpu] for gpu in gpus], near, Provenance.ASSUMED)
    pen.notes([f"{matrix.where}: speeds of PCIe, CPUs and NICs are assumed", *matrix.notes])
    return pen.fragment()


def _near(matrix: Matrix, gpus: list[str]) -> dict[tuple[str, str], Nearness]:
    """What pairs share. NV# hides it, but GPUs of one NUMA node share at least that."""
    near = {pair: NEAR[cell] for pair, cell in matrix.cells.items() if cell in NEAR}
    for a, b in permutations(gpus, 2):
        if matrix.numa[a] and matrix.numa[a] == matrix.numa[b]:
            near.setdefault((a, b), Nearness.NODE)
    return near


def _nvlinks(
    matrix: Matrix, gpus: list[str], node: Mapping[str, str], host: str, sm: int | None, pen: Pen
) -> None:
    counts = {
        (a, b): int(matrix.cells[a, b][2:])
        for a, b in permutations(gpus, 2)
        if matrix.cells[a, b].startswith("NV") and matrix.cells[a, b] != "NV0"
    }
    if not counts:
        return
    if sm is None:
        # More than 12 links came with Hopper; below, V100 and A100 have the same speed.
        sm = 90 if max(counts.values()) > max_nvlinks(80) else 80
        most = MOST_NVLINKS
        pen.notes([f"an NVLink is taken as {nvlink_GBps(sm):g} GB/s; --sm says which GPU it is"])
    else:
        most = max_nvlinks(sm)
    for gpu in gpus:
        own = {b: count for (a, b), count in counts.items() if a == gpu}
        if sum(own.values()) > most:
            switch = pen.node(f"{host}/nvswitch", Kind.SWITCH)
            cost = nvlink_cost(nvlink_GBps(sm) * max(own.values()), ends=1)
            pen.both_ways(node[gpu], switch, cost, "nvlink")
        else:
            for other, count in own.items():
                cost = nvlink_cost(nvlink_GBps(sm) * count, ends=2)
                pen.one_way(node[gpu], node[other], cost, "nvlink")
