"""NVML live: the GPUs of this host, their NVLinks, PCIe and what pairs of them share.

``look`` is the only part that asks the driver, through the few functions of ``Nvml`` (the module
pynvml has them); ``fragment`` makes links of what it saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

from trainmesh.errors import TrainmeshError
from trainmesh.topology.graph import Kind, Provenance
from trainmesh.topology.importers.fragment import Fragment, Pen, rank_name
from trainmesh.topology.importers.hardware import nvlink_cost, nvlink_GBps, pcie_GBps
from trainmesh.topology.importers.nearness import Nearness, plant

__all__ = ["Gpu", "GpuMachine", "Nvml", "fragment", "look"]

MAX_LINKS = 36
"""NVML_NVLINK_MAX_LINKS"""
ENABLED = 1
"""NVML_FEATURE_ENABLED."""
TO_GPU = 0
"""NVML_NVLINK_DEVICE_TYPE_GPU"""
GIGATRANSFERS = {1: "2.5", 2: "5", 3: "8", 4: "16", 5: "32", 6: "64"}
"""Of a PCIe lane, by generation."""
ANCESTORS = {
    0: Nearness.PIX,  # NVML_TOPOLOGY_INTERNAL: on one board
    10: Nearness.PIX,
    20: Nearness.PXB,
    30: Nearness.PHB,
    40: Nearness.NODE,
    50: Nearness.SYS,
}


class Nvml(Protocol):
    """What is asked of pynvml."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> Sequence[int]: ...
    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int: ...
    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> int: ...
    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int: ...
    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Any, link: int) -> int: ...
    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: Any, link: int) -> Any: ...
    def nvmlDeviceGetTopologyCommonAncestor(self, one: Any, other: Any) -> int: ...


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``peers`` counts its NVLinks by the bus id at their far end, "" for a switch.
    ``pcie_generation`` is the highest that GPU and slot can, since an idle GPU steps down."""

    name: str
    busid: str
    sm: int
    pcie_generation: int
    pcie_width: int
    peers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class GpuMachine:
    """The GPUs by index, and what pairs of them share."""

    gpus: tuple[Gpu, ...]
    near: tuple[tuple[int, int, Nearness], ...]


def look(nvml: Nvml) -> GpuMachine:
    """Ask the driver once.

    Raises:
        TrainmeshError: no driver, no GPU, or the driver does not answer.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise TrainmeshError(
            f"NVML: {error}; run this on a host with an NVIDIA driver (nvidia-smi must work)"
        ) from error
    try:
        return _machine(nvml)
    except nvml.NVMLError as error:
        raise TrainmeshError(f"NVML: {error}; run nvidia-smi and see why") from error
    finally:
        nvml.nvmlShutdown()


def _machine(nvml: Nvml) -> GpuMachine:
    count = nvml.nvmlDeviceGetCount()
    if not count:
        raise TrainmeshError("NVML: the driver knows no GPU; run this on a host that has one")
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    near = tuple(
        (a, b, shared)
        for a, b in combinations(range(count), 2)
        if (shared := _ancestor(nvml, handles[a], handles[b])) is not None
    )
    return GpuMachine(tuple(_gpu(nvml, handle) for handle in handles), near)


def _gpu(nvml: Nvml, handle: Any) -> Gpu:
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=name.decode(errors="replace") if isinstance(name, bytes) else name,
        busid=_busid(nvml.nvmlDeviceGetPciInfo(handle)),
        sm=10 * major + minor,
        pcie_generation=nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        pcie_width=nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        peers=_peers(nvml, handle),
    )


def _peers(nvml: Nvml, handle: Any) -> tuple[tuple[str, int], ...]:
    peers: Counter[str] = Counter()
    for link in range(MAX_LINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, link) != ENABLED:
                continue
        except nvml.NVMLError:
            break  # this GPU has no such link, or none at all
        try:
            to_gpu = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == TO_GPU
            remote = nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link) if to_gpu else None
        except nvml.NVMLError:
            remote = None  # virtual machines hide the switches
        peers[_busid(remote) if remote is not None else ""] += 1
    return tuple(sorted(peers.items()))


def _ancestor(nvml: Nvml, one: Any, other: Any) -> Nearness | None:
    """None where the driver does not say, as in some virtual machines."""
    try:
        return ANCESTORS.get(nvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    except nvml.NVMLError:
        return None


def _busid(pci: Any) -> str:
    busid = pci.busId
    return str(busid.decode(errors="replace") if isinstance(busid, bytes) else busid).lower()


def fragment(machine: GpuMachine, *, host: str, first_rank: int = 0) -> Fragment:
    """The links of the GPUs; GPU ``i`` is rank ``first_rank + i``. Bandwidths as in
    ``hardware``; those of CPUs are assumed."""
    pen = Pen()
    names = [
        pen.node(rank_name(host, first_rank + index), Kind.RANK, first_rank + index)
        for index in range(len(machine.gpus))
    ]
    by_busid = {gpu.busid: name for gpu, name in zip(machine.gpus, names, strict=True)}
    for gpu, name in zip(machine.gpus, names, strict=True):
        for busid, count in gpu.peers:
            GBps = count * nvlink_GBps(gpu.sm)
            if busid == gpu.busid:
                pen.notes([f"{count} NVLinks of {name} lead to itself and are left out"])
            elif busid in by_busid:
                pen.one_way(name, by_busid[busid], nvlink_cost(GBps, ends=2), "nvlink")
            elif busid:
                pen.notes([f"{count} NVLinks of {name} lead to a GPU that is not visible here"])
            else:
                switch = pen.node(f"{host}/nvswitch", Kind.SWITCH)
                pen.both_ways(name, switch, nvlink_cost(GBps, ends=1), "nvlink")
    devices = {
        name: pcie_GBps(GIGATRANSFERS.get(gpu.pcie_generation, ""), gpu.pcie_width)
        for gpu, name in zip(machine.gpus, names, strict=True)
    }
    near = {(names[a], names[b]): shared for a, b, shared in machine.near}
    plant(pen, host, devices, names, near, Provenance.DISCOVERED)
    pen.notes([f"{len(machine.gpus)} x {', '.join(sorted({gpu.name for gpu in machine.gpus}))}"])
    return pen.fragment()
