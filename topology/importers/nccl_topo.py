"""NCCL topology dumps (``NCCL_TOPO_DUMP_FILE``), RCCL's, and the topology files of cloud images.

::

    <system version="1">
      <cpu numaid="0" arch="x86_64" vendor="AuthenticAMD" familyid="23" modelid="49">
        <pci busid="0000:01:00.0" class="0x060400" link_speed="16 GT/s" link_width="16">
          <pci busid="0000:07:00.0" class="0x030200" link_speed="16 GT/s" link_width="16">
            <gpu dev="0" sm="80" rank="0"><nvlink target="..." count="12" tclass="0x068000"/></gpu>
          </pci>
          <pci busid="0000:0c:00.0" class="0x020700" ...><nic><net name="mlx5_0" speed="200000"/>

A GPU becomes the rank it had, a bridge a switch, a CPU (NUMA node) and the host nodes of kind
host, a card with nets a NIC that leads to the network. As in NCCL, all NVSwitches are one (each
GPU has links to every one of them) and bandwidths are NCCL's own (``hardware``). Unlike in NCCL,
the CPUs of a host meet in the host's node, not each with each. What is left out is said, once for
each kind, with the first line and how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from trainmesh.errors import GraphError
from trainmesh.topology.graph import MAX_NAME, Kind, Provenance
from trainmesh.topology.importers.fragment import NETWORK, Fragment, Pen, rank_name
from trainmesh.topology.importers.hardware import (
    ASSUMED_NETWORK,
    inter_cpu_GBps,
    network_cost,
    pcie_cost,
    pcie_GBps,
)
from trainmesh.topology.importers.nccl_links import (
    GPU_CLASSES,
    PlacedGpu,
    bus_number,
    draw_gpu_links,
    draw_pci_links,
)
from trainmesh.topology.importers.xml_tree import Element, parse_xml
from trainmesh.types import MAX_RANKS

__all__ = ["parse"]

NIC_CLASS = "0x02"
AMD = "0x1002"
KNOWN = {
    "system": ("cpu",),
    "cpu": ("pci", "nic"),
    "pci": ("pci", "gpu", "nic", "pcilink"),
    "gpu": ("nvlink", "xgmi", "c2c"),
    "nic": ("net",),
}
"""What NCCL and RCCL write, by the element it stands in."""


def parse(text: str, *, source: str, host: str, first_rank: int | None = None) -> Fragment:
    """The host (or hosts, if the dump has several) that a dump describes.

    Args:
        text: The XML.
        source: What complaints call it.
        host: What the host is called; further ones in the dump get ``-2``, ``-3``, ...
        first_rank: Number the GPUs from here, in the order of their ranks; None keeps the
            ranks of the dump. A file without ranks is numbered by bus id, from 0 by default.

    Raises:
        GraphError: not such a dump; with source and line.
    """
    system = parse_xml(text, source=source, root="system")
    return _Reader(system, host, first_rank).read()


class _Reader:
    def __init__(self, system: Element, host: str, first_rank: int | None) -> None:
        self._system, self._host, self._first_rank = system, host, first_rank
        self._pen = Pen()
        self._gpus: dict[int, PlacedGpu] = {}
        """By ``id`` of the PCI device's element; without names until they are numbered."""
        self._host_of: dict[str, str] = {}
        self._cpus: set[str] = set()
        self._switches: dict[tuple[str, str], str] = {}
        self._pci_links: list[tuple[str, str, Element]] = []

    def read(self) -> Fragment:
        for words, where in self._system.unknown(KNOWN):
            self._pen.say(words, where)
        for cpu in self._system.all("cpu"):
            for device in self._devices(cpu):
                self._find(device, self._host_name(cpu), self._cpu_name(cpu))
        self._number()
        for cpu in self._system.all("cpu"):
            self._cpu(cpu)
        draw_gpu_links(self._pen, list(self._gpus.values()), f"{self._host}/nvswitch")
        draw_pci_links(self._pen, self._pci_links, self._switches)
        return self._pen.fragment()

    def _host_name(self, cpu: Element) -> str:
        known = self._host_of
        number = len(known) + 1
        name = self._host if number == 1 else f"{self._host}-{number}"
        return known.setdefault(cpu.text("host_hash", ""), name)

    def _cpu_name(self, cpu: Element) -> str:
        return f"{self._host_name(cpu)}/numa{cpu.whole('numaid', 0)}"

    def _devices(self, parent: Element) -> list[Element]:
        """All PCI devices below ``parent``, the outer ones first. As in NCCL, what is below a
        GPU or a NIC does not count."""
        found = parent.all("pci")
        for device in found:  # grows while it is gone through
            if not _is_leaf(device):
                found.extend(device.all("pci"))
                continue
            for below in device.all("pci"):
                self._pen.say("PCI device below a GPU or NIC is left out", below.where)
        return found

    def _find(self, device: Element, host: str, cpu: str) -> None:
        if not _is_gpu(device):
            return
        gpus = device.all("gpu")
        for further in gpus[1:]:
            self._pen.say("more than one rank on a GPU; the first is taken", further.where)
        bus = bus_number(device.text("busid"))
        if any((gpu.host, gpu.bus) == (host, bus) for gpu in self._gpus.values()):
            raise GraphError(f"{device.where}: bus id {device.text('busid')[:40]!r} is there twice")
        gpu = PlacedGpu("", host, cpu, bus, gpus[0] if gpus else None, device.where)
        self._gpus[id(device)] = gpu

    def _number(self) -> None:
        """Finds the rank of each GPU; those that have none beside others that do are not part of
        the job."""
        if not self._gpus:
            raise GraphError(f"{self._system.where}: no GPU in it; dump it from a rank of the job")
        ranks = {key: _rank(gpu) for key, gpu in self._gpus.items() if _has_rank(gpu)}
        by_rank: dict[int, int] = {}
        for key, rank in ranks.items():
            if by_rank.setdefault(rank, key) != key:
                raise GraphError(f"{self._gpus[key].where}: rank {rank} is there twice")
        if not by_rank:
            ordered = sorted(self._gpus, key=lambda key: self._gpus[key].place)
            by_rank = dict(enumerate(ordered))
            self._pen.say("no ranks; GPUs are numbered by bus id", self._system.where)
        for key in (key for key in self._gpus if key not in by_rank.values()):
            self._pen.say("GPU without a rank is left out: not of the job", self._gpus[key].where)
        placed: dict[int, PlacedGpu] = {}
        for place, (rank, key) in enumerate(sorted(by_rank.items())):
            gpu = self._gpus[key]
            if self._first_rank is not None:
                rank = self._first_rank + place
            name = self._pen.node(rank_name(gpu.host, rank), Kind.RANK, rank)
            placed[key] = replace(gpu, name=name)
        self._gpus = placed

    def _cpu(self, cpu: Element) -> None:
        host = self._pen.node(self._host_name(cpu), Kind.HOST)
        name = self._pen.node(self._cpu_name(cpu), Kind.HOST)
        GBps = inter_cpu_GBps(
            cpu.text("arch", ""),
            cpu.text("vendor", ""),
            cpu.whole("familyid", 0),
            cpu.whole("modelid", 0),
        )
        if name not in self._cpus:
            self._pen.both_ways(name, host, pcie_cost(GBps, ends=0), "sys")
        self._cpus.add(name)
        for child in cpu.children:
            if child.tag == "pci":
                self._device(child, name, host)
            elif child.tag == "nic" and (nets := self._nets([child])):
                self._nic(nets, name, host, None, Provenance.DISCOVERED)
            elif child.tag == "nic":
                self._pen.say("NIC without a network is left out", child.where)

    def _device(self, device: Element, parent: str, host: str) -> None:
        """A PCI device and all below it; depth is bounded by ``parse_xml``."""
        GBps, provenance = _pcie(device)
        gpu = self._gpus.get(id(device))
        if gpu is not None:
            self._pen.both_ways(gpu.name, parent, pcie_cost(GBps, ends=1), "pcie", provenance)
        if gpu is not None or _is_gpu(device):
            return
        if _is_leaf(device):
            self._card(device, parent, host)
            return
        busid = device.text("busid")
        name = self._pen.node(f"{host}/pci {busid[:40]}", Kind.SWITCH)
        self._switches[host, bus_number(busid)] = name
        self._pci_links += [(host, name, link) for link in device.all("pcilink")]
        self._pen.both_ways(name, parent, pcie_cost(GBps, ends=0), "pcie", provenance)
        for child in device.all("pci"):
            self._device(child, name, host)

    def _card(self, device: Element, parent: str, host: str) -> None:
        """A NIC on PCIe. In a cloud's file it has no nets: those are what NCCL finds later."""
        nics = device.all("nic")
        nets = self._nets(nics)
        GBps, provenance = _pcie(device)
        if nets:
            self._nic(nets, parent, host, GBps, provenance)
        elif not nics:
            name = f"nic {device.text('busid')[:40]}"
            self._draw_nic(name, parent, host, (GBps, provenance), None, device.where)
        else:
            self._pen.say("NIC without a network is left out", device.where)

    def _nets(self, nics: Iterable[Element]) -> list[Element]:
        """The nets that NCCL would use: newer dumps also list the parts of merged NICs, without a
        number, and engines that serve one-sided messages only."""
        nets = [net for nic in nics for net in nic.all("net")]
        used = [net for net in nets if "dev" in net.attributes and net.whole("net", 1)]
        for net in nets:
            if net not in used:
                self._pen.say(
                    "net that NCCL does not use (no dev, or net=0) is left out", net.where
                )
        return used

    def _nic(
        self, nets: list[Element], parent: str, host: str, GBps: float | None, known: Provenance
    ) -> None:
        """A card: one node, whose link to the network has the speed of all its ports. One of a
        virtual machine has no PCI device, and nothing inside limits it."""
        speeds = [net.whole("speed", 0) for net in nets]
        total = sum(speeds) / 8000 if all(speed > 0 for speed in speeds) else None
        inside = (total or ASSUMED_NETWORK, known if total else Provenance.ASSUMED)
        name = nets[0].text("name", f"net{nets[0].text('dev')}")
        self._draw_nic(
            name, parent, host, inside if GBps is None else (GBps, known), total, nets[0].where
        )

    def _draw_nic(
        self,
        name: str,
        parent: str,
        host: str,
        inside: tuple[float, Provenance],
        network_GBps: float | None,
        where: str,
    ) -> None:
        node = self._pen.node(f"{host}/{name}"[:MAX_NAME], Kind.NIC)
        if network_GBps is None:
            self._pen.say(f"NIC without a speed; taken as {ASSUMED_NETWORK:g} GB/s", where)
        own = Provenance.DISCOVERED if network_GBps else Provenance.ASSUMED
        self._pen.node(NETWORK, Kind.SWITCH)
        self._pen.both_ways(node, parent, pcie_cost(inside[0], ends=0), "pcie", inside[1])
        cost = network_cost(network_GBps or ASSUMED_NETWORK)
        self._pen.both_ways(node, NETWORK, cost, "network", own)


def _is_gpu(device: Element) -> bool:
    """By class 0x12 there are other accelerators as well; AMD's are GPUs."""
    kind = device.text("class", "")
    classes = GPU_CLASSES if device.text("vendor", AMD).lower() == AMD else GPU_CLASSES[:1]
    return bool(device.all("gpu")) or kind.startswith(classes)


def _is_leaf(device: Element) -> bool:
    """A GPU or a NIC: what is below it does not count."""
    return (
        _is_gpu(device) or bool(device.all("nic")) or device.text("class", "").startswith(NIC_CLASS)
    )


def _has_rank(gpu: PlacedGpu) -> bool:
    return gpu.element is not None and "rank" in gpu.element.attributes


def _rank(gpu: PlacedGpu) -> int:
    assert gpu.element is not None  # noqa: S101 - for the type checker
    rank = gpu.element.whole("rank")
    if not 0 <= rank < MAX_RANKS:
        raise gpu.element.wrong("rank", f"0 to {MAX_RANKS - 1}")
    return rank


def _pcie(device: Element) -> tuple[float, Provenance]:
    """GB/s between a device and what is above it; assumed where /sys did not say."""
    speed = re.match(r"[0-9]+(\.[0-9]+)?", device.text("link_speed", ""))
    width = device.whole("link_width", 0)
    known = speed is not None and width > 0
    GBps = pcie_GBps(speed[0] if speed else "", width)
    return GBps, Provenance.DISCOVERED if known else Provenance.ASSUMED
