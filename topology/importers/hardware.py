"""What links can carry, as NCCL counts it: what programs get, about 0.75 of the nominal PCIe and
0.8 of the nominal NVLink rate. Bandwidths are 10^9 byte/s, each way.

Sources: NCCL 2.30, ``src/graph/topo.h`` (NVLink, CPU and network constants), ``topo.cc``
(``kvDictPciGen``: 100 Mbit/s of a lane; the models of CPUs). Alphas are the latencies of one hop
of a ring with the Simple protocol (``hwLatencies`` of ``tuning.cc``), the one that reaches these
bandwidths. A hop crosses several links: half of its latency counts at each of its two ends.
Of AMD's GPUs: RCCL of ROCm 7, ``topo.h`` (``*_XGMI_WIDTH`` by architecture) and ``tuning.cc``
(``hwLat`` of the models for gfx90a and for gfx942).
"""

from __future__ import annotations

from typing import NamedTuple

from trainmesh.topology.nccl.tables import HOP_LATENCY, Hardware, NcclAlgorithm
from trainmesh.types import LinkCost

__all__ = [
    "KNOWN_SM",
    "ASSUMED_NETWORK",
    "ASSUMED_PCIE",
    "ASSUMED_SYS",
    "SAME_CHIP",
    "Xgmi",
    "inter_cpu_GBps",
    "link_cost",
    "max_nvlinks",
    "network_cost",
    "nvlink_GBps",
    "nvlink_cost",
    "pcie_GBps",
    "pcie_cost",
    "xgmi_link",
]

_HOP_US = {hardware: latency[NcclAlgorithm.RING][-1] for hardware, latency in HOP_LATENCY.items()}
# topo.h SM60_NVLINK_BW and its likes: one link, by the compute capability from which it holds.
_NVLINK_GBps = ((100, 40.1), (90, 20.6), (87, 20.0), (86, 12.0), (70, 20.0), (60, 18.0))
KNOWN_SM = (60, 61, 62, 70, 72, 75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
"""Compute capabilities from Pascal, the first with NVLinks, to Blackwell (CUDA 13)."""
# Links that a GPU has: P100, V100, A100, H100, B200.
_NVLINKS = ((90, 18), (80, 12), (70, 6), (0, 4))
# One xGMI link and the latency of a hop, by the first letters of the GPU's architecture.
_XGMI = (
    ("gfx906", 24.0, 3.6),
    ("gfx908", 24.0, 3.6),
    ("gfx90a", 36.0, 3.6),
    ("gfx94", 48.0, 2.1),
    ("gfx95", 48.0, 2.1),
    ("gfx125", 64.0, 2.1),
)
_OTHER_XGMI = (24.0, 3.6)
# 10^8 bit/s of one lane, by GT/s; 8 GT/s where the speed is not known, as in NCCL.
_PCIE_LANE = {"2.5": 15, "5": 30, "8": 60, "16": 120, "32": 240, "64": 480}
_DEFAULT_LANE = 60
"""PCIe 3.0, as NCCL assumes for a speed that it doesn't know."""
_DEFAULT_WIDTH = 16
"""Of a GPU's or a NIC's slot, where none is told."""
_MAX_WIDTH = 64
"""Twice the widest PCIe slot: more is a mistake of the file."""
_ARM_GBps = 6.0
_POWER_GBps = 32.0
_LOCAL_GBps = 5000.0
_NET_GBps = 12.0


def nvlink_GBps(sm: int) -> float:
    """One NVLink of a GPU with compute capability ``sm`` (80 for 8.0)."""
    return next((GBps for first, GBps in _NVLINK_GBps if sm >= first), 20.0)


def max_nvlinks(sm: int) -> int:
    """How many NVLinks such a GPU has at most."""
    return next(count for first, count in _NVLINKS if sm >= first)


class Xgmi(NamedTuple):
    """One xGMI link of an AMD GPU; ``is_known`` unless RCCL takes it for one of the oldest."""

    GBps: float
    hop_us: float
    is_known: bool


def xgmi_link(gcn: str) -> Xgmi:
    """A link of a GPU with architecture ``gcn``: ``gfx942``, or the number that RCCL wrote
    before (906, 908, 910 for gfx90a, 940 to 942)."""
    name = f"gfx{gcn}" if gcn.isdecimal() else gcn.lower()
    name = "gfx90a" if name == "gfx910" else name
    for first, GBps, hop_us in _XGMI:
        if name.startswith(first):
            return Xgmi(GBps, hop_us, is_known=True)
    return Xgmi(*_OTHER_XGMI, is_known=False)


def pcie_GBps(gigatransfers: str, width: int) -> float:
    """A PCIe link of ``width`` lanes; ``gigatransfers`` of a lane as ``"16"`` or ``"16.0"``.
    Where one of them is not known ("" or 0), it is taken as 8 GT/s and 16 lanes."""
    lane = _PCIE_LANE.get(gigatransfers.removesuffix(".0"), _DEFAULT_LANE)
    return (width if 0 < width <= _MAX_WIDTH else _DEFAULT_WIDTH) * lane / 80


def inter_cpu_GBps(arch: str, vendor: str, family: int, model: int) -> float:
    """From one CPU of a host to another, by the values of /proc/cpuinfo."""
    if arch == "ppc64":
        return _POWER_GBps
    if arch == "arm64":
        return _ARM_GBps
    if vendor == "GenuineIntel":
        return _intel_GBps(family, model)
    if vendor == "AuthenticAMD":
        # NCCL up to 2.27 dumped 0x8f, 0xaf and 0xbf for the families 23, 25 and 26.
        return {25: 24.0, 0xAF: 24.0, 26: 32.0, 0xBF: 32.0}.get(family, 16.0)
    return _LOCAL_GBps


def _intel_GBps(family: int, model: int) -> float:
    """Broadwell, Skylake, Sapphire Rapids, Emerald Rapids and later."""
    if family != 6:
        return 6.0
    if model >= 0xCF or model in (0xAD, 0xAE, 0xAF):
        return 40.0
    return 22.0 if model >= 0x8F else 10.0 if model >= 0x55 else 6.0


def link_cost(GBps: float, alpha_us: float = 0.0) -> LinkCost:
    """A cost from 10^9 byte/s and microseconds."""
    return LinkCost(alpha_s=alpha_us * 1e-6, bandwidth_bytes_per_s=GBps * 1e9)


def nvlink_cost(GBps: float, *, ends: int) -> LinkCost:
    """NVLinks of ``GBps`` in all; ``ends`` is 2 from GPU to GPU and 1 from GPU to switch."""
    return link_cost(GBps, _HOP_US[Hardware.NVLINK] / 2 * ends)


def pcie_cost(GBps: float, *, ends: int) -> LinkCost:
    """A link of PCIe or between CPUs; ``ends`` is how many of its two ends are GPUs."""
    return link_cost(GBps, _HOP_US[Hardware.PCI] / 2 * ends)


def network_cost(GBps: float) -> LinkCost:
    """From a NIC to the network: half of a hop."""
    return link_cost(GBps, _HOP_US[Hardware.NET] / 2)


SAME_CHIP = _LOCAL_GBps
"""Within one device: no limit that counts (LOC_BW)."""
ASSUMED_PCIE = pcie_GBps("", 0)
"""PCIe 3 x16: 12."""
ASSUMED_SYS = 10.0
"""Between the CPUs of a host, where it is not known which they are (SKL_QPI_BW)."""
ASSUMED_NETWORK = _NET_GBps
"""A NIC of 100 Gbit/s (NET_BW)."""
