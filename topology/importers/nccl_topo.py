"""NCCL topology dumps (``NCCL_TOPO_DUMP_FILE``), and the topology files of cloud images.

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
the CPUs of a host meet in the host's node, not each with each.
"""

from __future__ import annotations

import re

from trainmesh.errors import GraphError
from trainmesh.topology.graph import MAX_NAME, Kind, Provenance
from trainmesh.topology.importers.fragment import NETWORK, Fragment, Pen, rank_name
from trainmesh.topology.importers.hardware import (
    ASSUMED_NETWORK,
    inter_cpu_GBps,
    link_cost,
    network_cost,
    nvlink_cost,
    nvlink_GBps,
    pcie_cost,
    pcie_GBps,
)
from trainmesh.topology.importers.xml_tree import Element, parse_xml
from trainmesh.types import MAX_RANKS

__all__ = ["parse"]

GPU_CLASS, NIC_CLASS, CPU_CLASS = "0x03", "0x02", "0x068001"
MAX_COUNT = 1_000
"""Of the links in one <nvlink> or <c2c>."""


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


class _Gpu:
    """A GPU of the job: its element (None in a cloud's file), bus id, host and local CPU."""

    def __init__(self, device: Element, gpu: Element | None, host: str, cpu: str) -> None:
        self.device, self.gpu, self.host, self.cpu = device, gpu, host, cpu
        self.busid = _busid(device)
        self.name = ""


class _Reader:
    def __init__(self, system: Element, host: str, first_rank: int | None) -> None:
        self._system, self._host, self._first_rank = system, host, first_rank
        self._pen = Pen()
        self._gpus: dict[int, _Gpu] = {}
        self._host_of: dict[str, str] = {}
        self._cpus: set[str] = set()

    def read(self) -> Fragment:
        for cpu in self._system.all("cpu"):
            for device in _devices(cpu):
                self._find(device, self._host_name(cpu), self._cpu_name(cpu))
        self._number()
        for cpu in self._system.all("cpu"):
            self._cpu(cpu)
        for gpu in self._gpus.values():
            self._gpu_links(gpu)
        return self._pen.fragment()

    def _host_name(self, cpu: Element) -> str:
        known = self._host_of
        number = len(known) + 1
        name = self._host if number == 1 else f"{self._host}-{number}"
        return known.setdefault(cpu.text("host_hash", ""), name)

    def _cpu_name(self, cpu: Element) -> str:
        return f"{self._host_name(cpu)}/numa{cpu.whole('numaid', 0)}"

    def _find(self, device: Element, host: str, cpu: str) -> None:
        gpus = device.all("gpu")
        if not gpus and not device.text("class", "").startswith(GPU_CLASS):
            return
        gpu = _Gpu(device, gpus[0] if gpus else None, host, cpu)
        if self._gpus.setdefault(id(device), gpu) is gpu and len(gpus) > 1:
            self._pen.notes([f"{device.where}: more than one rank on a GPU; the first is taken"])

    def _number(self) -> None:
        """Finds the rank of each GPU; those that have none beside others that do are not part of
        the job."""
        found = list(self._gpus.values())
        if not found:
            raise GraphError(f"{self._system.where}: no GPU in it; dump it from a rank of the job")
        ranked = {_rank(gpu): gpu for gpu in reversed(found) if _has_rank(gpu)}
        if len(ranked) != sum(map(_has_rank, found)):
            twice = next(gpu for gpu in found if _has_rank(gpu) and ranked[_rank(gpu)] is not gpu)
            raise GraphError(f"{twice.device.where}: rank {_rank(twice)} is there twice")
        if not ranked:
            ranked = dict(enumerate(sorted(found, key=lambda gpu: (gpu.host, gpu.busid))))
            self._pen.notes([f"{self._system.where}: no ranks; GPUs are numbered by bus id"])
        self._gpus = {}
        for place, (rank, gpu) in enumerate(sorted(ranked.items())):
            if self._first_rank is not None:
                rank = self._first_rank + place
            gpu.name = self._pen.node(rank_name(gpu.host, rank), Kind.RANK, rank)
            self._gpus[id(gpu.device)] = gpu

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
            elif child.tag == "nic":
                self._nic(child, child.where, name, host, None)

    def _device(self, device: Element, parent: str, host: str) -> None:
        """A PCI device and all below it; depth is bounded by ``parse_xml``."""
        GBps, provenance = _pcie(device)
        gpu = self._gpus.get(id(device))
        if gpu is not None:
            self._pen.both_ways(gpu.name, parent, pcie_cost(GBps, ends=1), "pcie", provenance)
            return
        kind = device.text("class", "")
        if device.all("gpu") or kind.startswith(GPU_CLASS):
            return
        nics = device.all("nic")
        if nics or kind.startswith(NIC_CLASS):
            self._nic(nics[0] if nics else None, device.where, parent, host, device)
            return
        name = self._pen.node(f"{host}/pci {device.text('busid')[:40]}", Kind.SWITCH)
        self._pen.both_ways(name, parent, pcie_cost(GBps, ends=0), "pcie", provenance)
        for child in device.all("pci"):
            self._device(child, name, host)

    def _nic(
        self, nic: Element | None, where: str, parent: str, host: str, device: Element | None
    ) -> None:
        """A card: one node, whose link to the network has the speed of all its ports."""
        nets = [net for net in nic.all("net") if net.whole("net", 1)] if nic else []
        if nic is not None and not nets:
            return
        if nets:
            name = nets[0].text("name", f"net{nets[0].text('dev', '?')}")
            speeds = [net.whole("speed", 0) for net in nets]
        else:
            name, speeds = f"nic {device.text('busid')}" if device else where, [0]
        node = f"{host}/{name}"[:MAX_NAME]
        known = all(speed > 0 for speed in speeds)
        GBps = sum(speeds) / 8000 if known else ASSUMED_NETWORK
        if not known:
            self._pen.notes([f"{where}: NIC {name} has no speed; taken as {GBps:g} GB/s"])
        provenance = Provenance.DISCOVERED if known else Provenance.ASSUMED
        # A NIC without a PCI device is one of a virtual machine: nothing inside limits it.
        inside, inner = _pcie(device) if device else (GBps, provenance)
        self._pen.node(node, Kind.NIC)
        self._pen.node(NETWORK, Kind.SWITCH)
        self._pen.both_ways(node, parent, pcie_cost(inside, ends=0), "pcie", inner)
        self._pen.both_ways(node, NETWORK, network_cost(GBps), "network", provenance)

    def _gpu_links(self, gpu: _Gpu) -> None:
        if gpu.gpu is None:
            return
        for c2c in gpu.gpu.all("c2c"):
            GBps = c2c.whole("bw", 0) / 1000 * _count(c2c)
            if GBps > 0:
                self._pen.both_ways(gpu.name, gpu.cpu, link_cost(GBps), "c2c")
        by_busid = {other.busid: other.name for other in self._gpus.values()}
        for nvlink in gpu.gpu.all("nvlink"):
            GBps = nvlink_GBps(gpu.gpu.whole("sm", 80)) * _count(nvlink)
            target, kind = nvlink.text("target", "").lower(), nvlink.text("tclass", "")
            if target in by_busid:
                self._pen.one_way(gpu.name, by_busid[target], nvlink_cost(GBps, ends=2), "nvlink")
            elif kind.startswith(GPU_CLASS):
                self._pen.notes([f"{nvlink.where}: NVLink to a GPU outside the job is left out"])
            elif kind.startswith(CPU_CLASS):
                self._pen.both_ways(gpu.name, gpu.cpu, nvlink_cost(GBps, ends=1), "nvlink")
            else:
                switch = self._pen.node(f"{self._host}/nvswitch", Kind.SWITCH)
                self._pen.both_ways(gpu.name, switch, nvlink_cost(GBps, ends=1), "nvlink")


def _devices(parent: Element) -> list[Element]:
    """All PCI devices below ``parent``, the outer ones first."""
    found = parent.all("pci")
    for device in found:  # grows while it is gone through
        found.extend(device.all("pci"))
    return found


def _busid(device: Element) -> str:
    return device.text("busid").lower()


def _has_rank(gpu: _Gpu) -> bool:
    return gpu.gpu is not None and "rank" in gpu.gpu.attributes


def _rank(gpu: _Gpu) -> int:
    assert gpu.gpu is not None  # noqa: S101 - for the type checker
    rank = gpu.gpu.whole("rank")
    if not 0 <= rank < MAX_RANKS:
        raise gpu.gpu.wrong("rank", f"0 to {MAX_RANKS - 1}")
    return rank


def _count(links: Element) -> int:
    count = links.whole("count", 1)
    if not 0 < count <= MAX_COUNT:
        raise links.wrong("count", f"1 to {MAX_COUNT}")
    return count


def _pcie(device: Element) -> tuple[float, Provenance]:
    """GB/s between a device and what is above it; assumed where /sys did not say."""
    speed = re.match(r"[0-9]+(\.[0-9]+)?", device.text("link_speed", ""))
    width = device.whole("link_width", 0)
    known = speed is not None and width > 0
    GBps = pcie_GBps(speed[0] if speed else "", width)
    return GBps, Provenance.DISCOVERED if known else Provenance.ASSUMED
