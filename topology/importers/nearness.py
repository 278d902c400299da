"""How near two devices of a host are, for each pair, turned into the tree that explains it.

nvidia-smi and NVML name the nearest thing that two devices share: a PCIe switch, a host bridge,
a NUMA node, or only the host. Devices that share something of one level are under one node of
the tree; a level that tells no two devices apart gets no node of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

from trainmesh.topology.graph import Kind, Provenance
from trainmesh.topology.importers.fragment import Pen
from trainmesh.topology.importers.hardware import ASSUMED_SYS, pcie_cost

__all__ = ["Nearness", "plant"]


class Nearness(IntEnum):
    """What two devices share, in nvidia-smi's words; the lower, the nearer."""

    PIX = 1
    """One PCIe switch."""
    PXB = 2
    """Several PCIe switches below one host bridge."""
    PHB = 3
    """A PCIe host bridge."""
    NODE = 4
    """A NUMA node."""
    SYS = 5
    """The host: between its NUMA nodes."""


LEVELS = {
    Nearness.PIX: ("switch", Kind.SWITCH, "pcie"),
    Nearness.PXB: ("switches", Kind.SWITCH, "pcie"),
    Nearness.PHB: ("bridge", Kind.HOST, "pcie"),
    Nearness.NODE: ("numa", Kind.HOST, "sys"),
}
"""Name and kind of the node, and the class of its link upwards."""


def plant(
    pen: Pen,
    host: str,
    devices: Mapping[str, float],
    gpus: Iterable[str],
    near: Mapping[tuple[str, str], Nearness],
    provenance: Provenance,
) -> None:
    """Add the tree below the host to ``pen``.

    Args:
        pen: Has the nodes of the devices already.
        host: Name of the root.
        devices: GB/s of each device's own link.
        gpus: Those of the devices whose links are ends of a hop.
        near: What pairs of devices share; pairs that are not there share the host.
        provenance: Of the devices' own bandwidths.
    """
    pen.node(host, Kind.HOST)
    ends = dict.fromkeys(gpus, 1)
    names = list(devices)
    tops: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    speed = dict(devices)
    link_class: dict[str, str] = {}

    def hang(child: str, parent: str) -> None:
        cost = pcie_cost(speed[child], ends=ends.get(child, 0))
        own = provenance if child in devices else Provenance.ASSUMED
        pen.both_ways(child, parent, cost, link_class.get(child, "pcie"), own)

    for level, (word, kind, upwards) in LEVELS.items():
        number = 0
        for group in _groups(names, (pair for pair, shared in near.items() if shared <= level)):
            inside = [top for top, members in tops.items() if members[0] in group]
            if len(inside) < 2:
                continue
            node = pen.node(f"{host}/{word}{number}", kind)
            number += 1
            link_class[node] = upwards
            pcie = max(speed[top] for top in inside)
            speed[node] = ASSUMED_SYS if upwards == "sys" else pcie
            members: tuple[str, ...] = ()
            for top in inside:
                hang(top, node)
                members += tops.pop(top)
            tops[node] = members
    for top in tops:
        hang(top, host)


def _groups(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The names that ``pairs`` join, in the order of their first ones."""
    group = {name: {name} for name in names}
    for a, b in pairs:
        if group[a] is not group[b]:
            joined = group[a] | group[b]
            for name in joined:
                group[name] = joined
    return list({id(members): members for members in group.values()}.values())
