"""What dumps of NCCL and RCCL say of links beside the PCIe tree: NVLink, xGMI, C2C, and links
between PCIe switches. A link is drawn, or it is said where it stands and why it is left out.

NCCL gives a link to the GPU itself to the GPU as a neighbour, and its search then never takes it:
some virtual machines show a GPU as the far end of its own NVLinks. Here it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainmesh.topology.graph import Kind
from trainmesh.topology.importers.fragment import Pen
from trainmesh.topology.importers.hardware import (
    SAME_CHIP,
    link_cost,
    nvlink_cost,
    nvlink_GBps,
    xgmi_link,
)
from trainmesh.topology.importers.xml_tree import Element
from trainmesh.types import LinkCost

__all__ = ["GPU_CLASSES", "PlacedGpu", "bus_number", "draw_gpu_links", "draw_pci_links"]

GPU_CLASSES = ("0x03", "0x12")
"""PCI classes of display controllers and, for MI300 and later, of processing accelerators."""
CPU_CLASS = "0x068001"
SWITCHED_GCN = "gfx125"
MAX_COUNT = 1_000
"""Of the links in one element."""


@dataclass(frozen=True)
class PlacedGpu:
    """A GPU: its node, host and local CPU, its ``bus_number``, its element (None in a cloud's
    file), and where its PCI device is in the dump."""

    name: str
    host: str
    cpu: str
    bus: str
    element: Element | None
    where: str

    @property
    def place(self) -> tuple[str, int, str]:
        """Sorts the GPUs of a host by bus id."""
        return self.host, len(self.bus), self.bus


def bus_number(busid: str) -> str:
    """A bus id without punctuation and leading zeros, as NCCL compares them: RCCL writes the
    domain of a far end with eight digits, and that of a device with four."""
    return busid.lower().replace(":", "").replace(".", "").lstrip("0")


def draw_gpu_links(pen: Pen, gpus: Sequence[PlacedGpu], switch: str) -> None:
    """Adds the links of ``gpus`` to ``pen``; all NVSwitches are the node ``switch``.

    Raises:
        GraphError: an attribute is missing or no number; with source and line.
    """
    by_bus = {(gpu.host, gpu.bus): gpu.name for gpu in gpus}
    for gpu in gpus:
        for child in gpu.element.children if gpu.element else ():
            if child.tag == "c2c":
                _c2c(pen, gpu, child)
            elif child.tag in ("nvlink", "xgmi"):
                _Link(pen, gpu, child).draw(by_bus, switch)


class _Link:
    """An ``<nvlink>`` or ``<xgmi>``: ``GBps`` of all its links together."""

    def __init__(self, pen: Pen, gpu: PlacedGpu, link: Element) -> None:
        self._pen, self._gpu, self._link = pen, gpu, link
        self._word = "NVLink" if link.tag == "nvlink" else "xGMI"
        self._count = _count(link)

    def draw(self, by_bus: Mapping[tuple[str, str], str], switch: str) -> None:
        own, kind = self._gpu.name, self._link.text("tclass", "")
        target = by_bus.get((self._gpu.host, bus_number(self._link.text("target", ""))))
        if target == own:
            self._say("of a GPU to itself is left out, as it leads nowhere")
        elif target is not None:
            self._pen.one_way(own, target, self._cost(ends=2), self._link.tag)
        elif kind.startswith(GPU_CLASSES):
            self._say("to a GPU outside the job is left out")
        elif kind.startswith(CPU_CLASS):
            self._pen.both_ways(own, self._gpu.cpu, self._cost(ends=1), self._link.tag)
        elif self._link.tag == "xgmi" and not self._is_switched:
            self._say(f"to a device of class {kind[:20] or 'unknown'!r} is left out")
        else:
            if not kind:
                self._say("does not say where it leads; taken as one to the NVSwitches")
            self._pen.node(switch, Kind.SWITCH)
            self._pen.both_ways(own, switch, self._cost(ends=1), self._link.tag)

    @property
    def _is_switched(self) -> bool:
        """Only the newest of AMD's GPUs have switches (UALink); of others RCCL takes a far end
        that it can't see, as in a virtual machine, for one."""
        assert self._gpu.element is not None  # noqa: S101 - for the type checker
        return self._gpu.element.text("gcn", "").startswith(SWITCHED_GCN)

    def _cost(self, *, ends: int) -> LinkCost:
        assert self._gpu.element is not None  # noqa: S101 - for the type checker
        if self._link.tag == "nvlink":
            return nvlink_cost(
                nvlink_GBps(self._gpu.element.whole("sm", 80)) * self._count, ends=ends
            )
        gcn = self._gpu.element.text("gcn", "")
        xgmi = xgmi_link(gcn)
        if not xgmi.is_known:
            self._say(
                f"of a GPU with gcn={gcn[:20]!r} is taken as {xgmi.GBps:g} GB/s, as RCCL does"
            )
        return link_cost(xgmi.GBps * self._count, xgmi.hop_us / 2 * ends)

    def _say(self, words: str) -> None:
        self._pen.say(f"{self._word} {words}", self._link.where)


def _c2c(pen: Pen, gpu: PlacedGpu, c2c: Element) -> None:
    GBps = c2c.whole("bw", 0) / 1000 * _count(c2c)
    if GBps > 0:
        pen.both_ways(gpu.name, gpu.cpu, link_cost(GBps), "c2c")
    else:
        pen.say("C2C without a bandwidth is left out", c2c.where)


def draw_pci_links(
    pen: Pen, links: Sequence[tuple[str, str, Element]], switches: Mapping[tuple[str, str], str]
) -> None:
    """Links between PCIe switches that are one chip (Broadcom's virtual switches).

    Args:
        pen: Has the nodes of the switches.
        links: Host, node of the switch, and ``<pcilink>`` in it.
        switches: The nodes by host and ``bus_number``.
    """
    for host, own, link in links:
        target = switches.get((host, bus_number(link.text("target"))))
        if target is None or target == own:
            pen.say("pcilink to a switch that is not in the dump is left out", link.where)
        else:
            pen.one_way(own, target, link_cost(SAME_CHIP), "pcie")


def _count(links: Element) -> int:
    count = links.whole("count", 1)
    if not 0 < count <= MAX_COUNT:
        raise links.wrong("count", f"1 to {MAX_COUNT}")
    return count
