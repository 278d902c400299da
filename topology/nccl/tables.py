"""The constants of NCCL's own cost model, as NCCL 2.30 has them in ``src/graph/tuning.cc``.

Latencies are microseconds, bandwidths 10^9 byte/s, both as NCCL states them. Rows by protocol
are (LL, LL128, Simple); rows by scale are (one node, two nodes, more).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

__all__ = [
    "HOP_LATENCY",
    "Generation",
    "Hardware",
    "NcclAlgorithm",
    "Protocol",
    "speeds",
    "tree_correction",
]


class NcclAlgorithm(StrEnum):
    """In the order in which NCCL tries them: the first of equals wins. Names as in NCCL_ALGO."""

    TREE = "tree"
    RING = "ring"
    COLLNET_DIRECT = "collnetdirect"
    COLLNET_CHAIN = "collnetchain"
    NVLS = "nvls"
    NVLS_TREE = "nvlstree"
    PAT = "pat"


class Protocol(StrEnum):
    """How a message is laid out. Names as in NCCL_PROTO."""

    LL = "LL"
    LL128 = "LL128"
    SIMPLE = "Simple"


class Hardware(StrEnum):
    """What carries a hop."""

    NVLINK = "nvlink"
    PCI = "pci"
    NET = "net"


class Generation(IntEnum):
    """GPU generations that NCCL tells apart, by the compute capability they begin with. Older
    ones count as Volta."""

    VOLTA = 70
    AMPERE = 80
    HOPPER = 90
    BLACKWELL = 100


PROTOCOLS = tuple(Protocol)
SIMPLE_ONLY = frozenset(NcclAlgorithm) - {NcclAlgorithm.TREE, NcclAlgorithm.RING}

# baseLatencies: of starting a collective.
BASE_LATENCY = {
    NcclAlgorithm.TREE: (6.8, 14.0, 8.4),
    NcclAlgorithm.RING: (6.6, 14.0, 8.4),
    NcclAlgorithm.COLLNET_DIRECT: (0.0, 0.0, 0.0),
    NcclAlgorithm.COLLNET_CHAIN: (0.0, 0.0, 0.0),
    NcclAlgorithm.NVLS: (0.0, 0.0, 0.0),
    NcclAlgorithm.NVLS_TREE: (0.0, 0.0, 0.0),
    NcclAlgorithm.PAT: (8.0, 8.0, 8.0),
}
# hwLatencies: of one hop.
HOP_LATENCY = {
    Hardware.NVLINK: {
        NcclAlgorithm.TREE: (0.6, 1.25, 4.0),
        NcclAlgorithm.RING: (0.6, 1.9, 3.4),
        NcclAlgorithm.COLLNET_DIRECT: (0.0, 0.0, 3.7),
        NcclAlgorithm.COLLNET_CHAIN: (0.0, 0.0, 2.8),
        NcclAlgorithm.NVLS: (0.0, 0.0, 25.0),
        NcclAlgorithm.NVLS_TREE: (0.0, 0.0, 25.0),
        NcclAlgorithm.PAT: (0.0, 0.0, 4.0),
    },
    Hardware.PCI: {
        NcclAlgorithm.TREE: (1.0, 1.9, 4.0),
        NcclAlgorithm.RING: (1.0, 2.5, 5.7),
        NcclAlgorithm.COLLNET_DIRECT: (0.0, 0.0, 3.7),
        NcclAlgorithm.COLLNET_CHAIN: (0.0, 0.0, 2.8),
        NcclAlgorithm.NVLS: (0.0, 0.0, 0.0),
        NcclAlgorithm.NVLS_TREE: (0.0, 0.0, 0.0),
        NcclAlgorithm.PAT: (0.0, 0.0, 4.0),
    },
    Hardware.NET: {
        NcclAlgorithm.TREE: (5.0, 8.5, 14.0),
        NcclAlgorithm.RING: (2.7, 4.0, 14.0),
        NcclAlgorithm.COLLNET_DIRECT: (0.0, 0.0, 31.0),
        NcclAlgorithm.COLLNET_CHAIN: (0.0, 0.0, 30.0),
        NcclAlgorithm.NVLS: (0.0, 0.0, 18.0),
        NcclAlgorithm.NVLS_TREE: (0.0, 0.0, 20.9),
        NcclAlgorithm.PAT: (0.0, 0.0, 14.0),
    },
}

# llMaxBws: of all channels. Across nodes NCCL looks at the CPU instead of the GPU and uses the
# rows of Volta for Intel and of Ampere for AMD.
LL_MAX = {
    Generation.VOLTA: (39.0, 39.0, 20.4),
    Generation.AMPERE: (87.7, 22.5, 19.0),
    Generation.HOPPER: (141.0, 45.0, 35.0),
    Generation.BLACKWELL: (282.0, 90.0, 70.0),
}
# perChMaxRingLL128Bws, perChMaxTreeLL128Bws, perChMaxTreeBws and perChMaxNVLSTreeBws: of one
# channel each.
RING_LL128_MAX = {
    Generation.VOLTA: (20.0, 20.0, 20.0),
    Generation.AMPERE: (20.0, 20.0, 20.0),
    Generation.HOPPER: (36.7, 36.7, 36.7),
    Generation.BLACKWELL: (40.0, 40.0, 40.0),
}
TREE_LL128_MAX = {
    Generation.VOLTA: (20.0, 20.0, 20.0),
    Generation.AMPERE: (20.0, 20.0, 20.0),
    Generation.HOPPER: (36.7, 36.7, 29.0),
    Generation.BLACKWELL: (55.6, 31.67, 20.0),
}
TREE_MAX = {
    Generation.VOLTA: (26.5, 18.5, 10.0),
    Generation.AMPERE: (24.0, 23.6, 17.8),
    Generation.HOPPER: (38.7, 41.4, 36.0),
    Generation.BLACKWELL: (70.0, 42.8, 24.0),
}
NVLS_TREE_MAX = {
    Generation.VOLTA: (26.5, 18.5, 10.0),
    Generation.AMPERE: (24.0, 23.6, 17.8),
    Generation.HOPPER: (0.0, 57.7, 45.5),
    Generation.BLACKWELL: (0.0, 96.0, 80.0),
}
# nvlsEfficiency
NVLS_EFFICIENCY = {
    Generation.VOLTA: 0.0,
    Generation.AMPERE: 0.0,
    Generation.HOPPER: 0.85,
    Generation.BLACKWELL: 0.74,
}
# treeCorrectionFactor: by powers of two of the size, from 64 bytes to 512 MiB.
TREE_CORRECTION = {
    Protocol.LL: (
        *(1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5),
        *(0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0),
    ),
    Protocol.LL128: (
        *(1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6),
        *(0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 1.0, 1.0, 1.0),
    ),
    Protocol.SIMPLE: (
        *(0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5),
        *(0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9, 0.9),
    ),
}
SMALLEST_CORRECTED = 64
"""The first size of NCCL's table of corrections."""

# speedArrayIntra and -Inter, sm90..., sm100... of src/graph/search.cc: the bandwidths of one
# channel that NCCL's search tries, on one node and across nodes.
SPEEDS = {
    Generation.VOLTA: (
        (40.0, 30.0, 20.0, 18.0, 15.0, 12.0, 10.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0),
        (
            *(48.0, 30.0, 28.0, 24.0, 20.0, 18.0, 15.0, 12.0, 10.0, 9.0),
            *(7.0, 6.0, 5.0, 4.0, 3.0, 2.4, 1.2, 0.24, 0.12),
        ),
    ),
    Generation.HOPPER: (
        (60.0, 50.0, 40.0, 30.0, 24.0, 20.0, 15.0, 12.0, 11.0, 6.0, 3.0),
        (
            *(48.0, 45.0, 42.0, 40.0, 30.0, 24.0, 22.0, 20.0, 17.5, 15.0),
            *(12.0, 6.0, 3.0, 2.4, 1.2, 0.24, 0.12),
        ),
    ),
    Generation.BLACKWELL: (
        (90.0, 80.0, 70.0, 60.0, 50.0, 45.0, 40.0, 30.0, 24.0, 20.0, 19.0, 18.0),
        (
            *(96.0, 80.0, 48.0, 45.1, 42.0, 40.0, 30.0, 24.0, 22.0, 20.0, 17.5),
            *(15.0, 12.0, 6.0, 3.0, 2.4, 1.2, 0.24, 0.12),
        ),
    ),
}


def speeds(generation: Generation, *, across_nodes: bool) -> tuple[float, ...]:
    """The bandwidths of one channel that NCCL's search tries, the largest first."""
    known = max(first for first in SPEEDS if first <= generation)
    return SPEEDS[known][across_nodes]


def tree_correction(protocol: Protocol, nbytes: int, *, powers: int) -> float:
    """What is left of a tree's bandwidth at this size, within that many ``powers`` of two from
    64 bytes; 1 elsewhere."""
    power = (nbytes // SMALLEST_CORRECTED).bit_length() - 1
    return TREE_CORRECTION[protocol][power] if 0 <= power < powers else 1.0
