"""Which algorithm and protocol NCCL will pick, from its own cost model, without a GPU.

NCCL's model (``src/graph/tuning.cc``, version 2.30; the tables are in ``tables``) gives each
pair of algorithm and protocol a latency and a bandwidth when a communicator is made, and takes,
per collective, the pair with the least ``latency + nbytes / bandwidth``. Predicted is the choice.
The time is what NCCL believes, which is not what the job will measure.

Left out: tuner plugins, NCCL_ALGO, NCCL_PROTO and the other variables; aggregation of several
collectives in one group; float8 (which avoids deep rings); averaging with PAT; all-gather and
reduce-scatter over CollNet (they need one NIC for each GPU and a network plug-in that gathers);
POWER CPUs; symmetric-memory kernels and registered buffers, which bypass the model; GPUs of
different generations in one job. NCCL computes in single precision, this in double.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from trainmesh.errors import ConfigError
from trainmesh.topology.nccl import tables
from trainmesh.topology.nccl.job import Cpu, NcclGraph, NcclJob
from trainmesh.topology.nccl.tables import Generation, Hardware, NcclAlgorithm, Protocol
from trainmesh.types import Collective

__all__ = ["NcclChoice", "NcclCost", "crossovers", "predict"]

MAX_COLLNET_LOCAL_RANKS = 8
"""NCCL leaves CollNet out on nodes with more GPUs."""
MAX_NVLS_LOCAL_RANKS = 32
"""For all-gather and reduce-scatter."""
LARGEST_BYTES = 2**50
"""A pebibyte: above is a mistake."""
CORRECTED_POWERS = 23
"""Sizes for which trees are corrected: up to 256 MiB; with NVLS one more."""


@dataclass(frozen=True)
class NcclCost:
    """What NCCL's model believes of one pair for one size; the bandwidth is algbw."""

    algorithm: NcclAlgorithm
    protocol: Protocol
    time_s: float
    latency_s: float
    bandwidth_bytes_per_s: float

    @property
    def name(self) -> str:
        """Like ``ring/LL128``."""
        return f"{self.algorithm}/{self.protocol}"


@dataclass(frozen=True)
class NcclChoice:
    """What NCCL will pick, and all that it weighs, in its own order."""

    chosen: NcclCost
    candidates: tuple[NcclCost, ...]


def predict(job: NcclJob, collective: Collective, nbytes: int) -> NcclChoice:
    """What NCCL will pick for ``collective`` of ``nbytes``, counted as in ``Collective``.

    Raises:
        ConfigError: ``nbytes`` is negative or absurd.
    """
    if not 0 <= nbytes <= LARGEST_BYTES:
        raise ConfigError(f"nbytes must be 0 to {LARGEST_BYTES}, not {nbytes}")
    if job.num_ranks == 1:
        copy = NcclCost(NcclAlgorithm.RING, Protocol.SIMPLE, 0.0, 0.0, math.inf)
        return NcclChoice(copy, (copy,))
    candidates = tuple(_candidates(job, collective, nbytes))
    return NcclChoice(min(candidates, key=lambda cost: cost.time_s), candidates)


def crossovers(job: NcclJob, collective: Collective) -> list[tuple[int, str, str]]:
    """All the sizes from which on NCCL picks something else: ``(nbytes, before, after)``.

    Exact: between two powers of two, and on either side of the ring's plateau, the times are
    straight lines, so that each pair wins on one interval at most.
    """
    plateau = 64 * job.num_channels * job.num_ranks
    powers = {tables.SMALLEST_CORRECTED << power for power in range(CORRECTED_POWERS + 2)}
    starts = sorted({1, plateau, LARGEST_BYTES + 1} | powers)
    found: list[tuple[int, str, str]] = []
    before = predict(job, collective, 1).chosen.name
    for start, beyond in pairwise(starts):
        first = predict(job, collective, start).chosen.name
        if first != before:
            found.append((start, before, first))
        found += _changes(job, collective, start, beyond - 1)
        before = predict(job, collective, beyond - 1).chosen.name
    return found


def _changes(
    job: NcclJob, collective: Collective, low: int, high: int
) -> Iterator[tuple[int, str, str]]:
    before, after = (predict(job, collective, size).chosen.name for size in (low, high))
    if before == after:
        return
    if high == low + 1:
        yield high, before, after
        return
    middle = (low + high) // 2
    yield from _changes(job, collective, low, middle)
    yield from _changes(job, collective, middle, high)


def _candidates(job: NcclJob, collective: Collective, nbytes: int) -> Iterator[NcclCost]:
    for algorithm in NcclAlgorithm:
        graph = _graph(job, collective, algorithm)
        if graph is None:
            continue
        for protocol in Protocol:
            if protocol is Protocol.LL128 and not graph.ll128:
                continue
            if protocol is not Protocol.SIMPLE and algorithm in tables.SIMPLE_ONLY:
                continue
            GBps = _bandwidth_GBps(job, graph, collective, algorithm, protocol)
            GBps *= _correction(job, collective, algorithm, protocol, nbytes)
            if GBps > 0:
                latency_us = _latency_us(job, graph, collective, algorithm, protocol)
                latency_us *= _plateau(job, collective, algorithm, protocol, nbytes)
                time_us = latency_us + nbytes / (1000 * GBps)
                yield NcclCost(algorithm, protocol, time_us * 1e-6, latency_us * 1e-6, GBps * 1e9)


def _graph(job: NcclJob, collective: Collective, algorithm: NcclAlgorithm) -> NcclGraph | None:
    """What ``algorithm`` runs on; None where NCCL does not consider it."""
    reduces_all = collective == Collective.ALLREDUCE
    small = job.local_ranks <= MAX_COLLNET_LOCAL_RANKS
    has_collnet = job.collnet_direct is not None or job.collnet_chain is not None
    nvls = job.nvls if job.nvls is not None and job.nvls.num_channels > 1 else None
    if job.num_nodes > 1:
        nvls_here = reduces_all and has_collnet
    else:
        nvls_here = reduces_all or job.local_ranks <= MAX_NVLS_LOCAL_RANKS
    graphs = {
        NcclAlgorithm.RING: job.ring,
        NcclAlgorithm.TREE: job.tree if reduces_all else None,
        NcclAlgorithm.COLLNET_DIRECT: job.collnet_direct if reduces_all and small else None,
        NcclAlgorithm.COLLNET_CHAIN: job.collnet_chain if reduces_all and small else None,
        NcclAlgorithm.NVLS: nvls if nvls_here else None,
        NcclAlgorithm.NVLS_TREE: nvls if reduces_all and job.num_nodes > 1 else None,
        NcclAlgorithm.PAT: job.tree if not reduces_all and job.num_nodes == job.num_ranks else None,
    }
    return graphs[algorithm]


def _num_steps(job: NcclJob, collective: Collective) -> int:
    return (2 if collective == Collective.ALLREDUCE else 1) * (job.num_ranks - 1)


def _bandwidth_GBps(
    job: NcclJob,
    graph: NcclGraph,
    collective: Collective,
    algorithm: NcclAlgorithm,
    protocol: Protocol,
) -> float:
    """Algbw: the bandwidth of the busiest hop times bytes of the collective over bytes there."""
    reduces_all = collective == Collective.ALLREDUCE
    per_channel = graph.intra_GBps if job.num_nodes <= 2 else graph.inter_GBps
    bus = graph.num_channels * per_channel
    if algorithm is NcclAlgorithm.RING:
        ratio = job.num_ranks / _num_steps(job, collective)
        return ratio * _ring_GBps(job, graph, bus, protocol)
    if algorithm in (NcclAlgorithm.NVLS, NcclAlgorithm.NVLS_TREE):
        ratio = job.num_ranks / _num_steps(job, collective) if reduces_all else 1.0
        return ratio * _nvls_GBps(job, graph, collective, algorithm)
    if algorithm is NcclAlgorithm.TREE:
        return 0.5 * _tree_GBps(job, graph, bus, protocol)
    if algorithm is NcclAlgorithm.PAT:
        return 0.75 * bus
    bus = graph.num_channels * graph.intra_GBps
    if algorithm is NcclAlgorithm.COLLNET_DIRECT:
        per_nic = job.num_ranks / job.num_nodes / graph.num_channels
        bus /= (per_nic + 1) / 2
        bus *= 0.85 if job.generation >= Generation.HOPPER else 1.0
    return 0.5 * bus


def _ll_max_GBps(job: NcclJob) -> float:
    if job.num_nodes == 1:
        return tables.LL_MAX[job.generation][0]
    row = Generation.AMPERE if job.cpu is Cpu.AMD else Generation.VOLTA
    return tables.LL_MAX[row][job.scale]


def _ring_GBps(job: NcclJob, graph: NcclGraph, bus: float, protocol: Protocol) -> float:
    if protocol is Protocol.LL:
        return min(_ll_max_GBps(job), bus * 0.5)
    if protocol is Protocol.LL128:
        most = graph.num_channels * tables.RING_LL128_MAX[job.generation][job.scale]
        return min(bus * 0.92, most)
    return bus


def _tree_GBps(job: NcclJob, graph: NcclGraph, bus: float, protocol: Protocol) -> float:
    bus = min(bus * 0.92, graph.num_channels * tables.TREE_MAX[job.generation][job.scale])
    if protocol is Protocol.LL:
        bus = min(bus / 3.8, _ll_max_GBps(job))
    if protocol is Protocol.LL128:
        most = graph.num_channels * tables.TREE_LL128_MAX[job.generation][job.scale]
        bus = min(bus * (7 / 9 if job.num_nodes == 1 else 120 / 128), most)
    return bus * (0.85 if job.plain_tree else 1.0)


def _nvls_GBps(
    job: NcclJob, graph: NcclGraph, collective: Collective, algorithm: NcclAlgorithm
) -> float:
    per_node = job.num_ranks / job.num_nodes
    intra = graph.intra_GBps * tables.NVLS_EFFICIENCY[job.generation]
    intra *= (graph.num_channels - 1) / graph.num_channels
    # An all-reduce pipelines its two halves.
    intra *= 2 if collective == Collective.ALLREDUCE else (per_node - 1) / per_node
    inter = graph.inter_GBps
    if algorithm is NcclAlgorithm.NVLS_TREE:
        inter = min(
            inter * (2 if job.num_nodes <= 2 else 1),
            tables.NVLS_TREE_MAX[job.generation][job.scale],
        )
    return graph.num_channels * min(intra, inter)


def _latency_us(
    job: NcclJob,
    graph: NcclGraph,
    collective: Collective,
    algorithm: NcclAlgorithm,
    protocol: Protocol,
) -> float:
    column = tables.PROTOCOLS.index(protocol)
    base = tables.BASE_LATENCY[algorithm][column]
    inside = Hardware.NVLINK if graph.nvlink else Hardware.PCI
    intra = tables.HOP_LATENCY[inside][algorithm][column]
    # With one rank a node nothing hides the network: NCCL takes the tree's.
    net = NcclAlgorithm.TREE if job.num_ranks == job.num_nodes else algorithm
    inter = tables.HOP_LATENCY[Hardware.NET][net][column]
    inter += graph.latency_us * (2 if protocol is Protocol.SIMPLE else 1)  # and a flush
    others = job.local_ranks - 1
    levels = job.num_nodes.bit_length() - 1
    if algorithm is NcclAlgorithm.RING:
        return base + _ring_latency_us(job, collective, protocol, intra, inter)
    if algorithm is NcclAlgorithm.TREE:
        return base + 2 * (others * intra + levels * inter)
    if algorithm is NcclAlgorithm.COLLNET_DIRECT:
        return base + 2 * (min(1, others) * intra + others * 0.4) + inter
    if algorithm is NcclAlgorithm.COLLNET_CHAIN:
        return base + 2 * others * intra + inter
    if algorithm is NcclAlgorithm.NVLS:
        return intra + (inter if job.num_nodes > 1 else 0.0)
    if algorithm is NcclAlgorithm.NVLS_TREE:
        return base + intra + 2 * levels * inter
    return base + levels * inter / 3.5 + job.num_ranks * 2.8


def _ring_latency_us(
    job: NcclJob, collective: Collective, protocol: Protocol, intra: float, inter: float
) -> float:
    steps = _num_steps(job, collective)
    if job.num_nodes == 1:
        return steps * intra
    posting = (2.0 if job.cpu is Cpu.AMD else 1.0) * (3 if protocol is Protocol.SIMPLE else 1)
    across = steps * (job.num_nodes - 1) // (job.num_ranks - 1)
    return (steps - across) * max(intra, posting) + across * inter


def _correction(
    job: NcclJob,
    collective: Collective,
    algorithm: NcclAlgorithm,
    protocol: Protocol,
    nbytes: int,
) -> float:
    """Trees fall behind the model at medium sizes."""
    if collective != Collective.ALLREDUCE:
        return 1.0
    if algorithm is NcclAlgorithm.TREE:
        return tables.tree_correction(protocol, nbytes, powers=CORRECTED_POWERS)
    blackwell_x86 = job.generation >= Generation.BLACKWELL and job.cpu is not Cpu.ARM
    if algorithm is NcclAlgorithm.NVLS_TREE and blackwell_x86:
        return tables.tree_correction(protocol, nbytes, powers=CORRECTED_POWERS + 1)
    return 1.0


def _plateau(
    job: NcclJob,
    collective: Collective,
    algorithm: NcclAlgorithm,
    protocol: Protocol,
    nbytes: int,
) -> float:
    """Rings across nodes are slower from a certain size on."""
    ring = algorithm is NcclAlgorithm.RING and protocol is Protocol.SIMPLE
    if not ring or collective != Collective.ALLREDUCE or job.num_nodes == 1:
        return 1.0
    if nbytes // (job.num_channels * job.num_ranks) < 64:
        return 1.0
    return 1.4 if job.generation >= Generation.AMPERE else 1.9
