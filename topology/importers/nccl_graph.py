"""NCCL graph dumps (``NCCL_GRAPH_DUMP_FILE``): the rings and trees that NCCL's search found.

::

    <graphs version="1">
      <graph id="0" pattern="4" nchannels="2" speedintra="20" speedinter="20" latencyinter="0"
             typeintra="NVL" typeinter="PIX" samechannels="1">
        <channel><net dev="0"/><gpu dev="0"/><gpu dev="1"/><net dev="0"/></channel>

The links it implies: neighbours in the channels of a ring or tree, each with the sum of what the
channels over it carry, and the NICs at their ends. NVLS and CollNet channels are stars through a
switch that the dump does not show; they imply none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

from trainmesh.errors import GraphError
from trainmesh.topology.graph import Kind
from trainmesh.topology.importers.fragment import NETWORK, Fragment, Pen, rank_name
from trainmesh.topology.importers.hardware import (
    link_cost,
    network_cost,
    nvlink_cost,
    pcie_cost,
    xgmi_link,
)
from trainmesh.topology.importers.xml_tree import Element, parse_xml
from trainmesh.types import MAX_RANKS, LinkCost

__all__ = ["NcclChannel", "FoundGraph", "ChannelGpu", "Pattern", "implied", "parse"]

SYSTEM_BITS = 56
"""A device of another host of one NVLink domain has the host's number above these bits."""


class Pattern(IntEnum):
    """``NCCL_TOPO_PATTERN_*`` of NCCL's ``graph.h``."""

    BALANCED_TREE = 1
    SPLIT_TREE = 2
    TREE = 3
    RING = 4
    NVLS = 5
    COLLNET_DIRECT = 6


_Pair = tuple[str, str]
CHAINS = frozenset({Pattern.BALANCED_TREE, Pattern.SPLIT_TREE, Pattern.TREE, Pattern.RING})
KNOWN = {"graphs": ("graph",), "graph": ("channel",), "channel": ("net", "gpu")}
"""What NCCL and RCCL write, by the element it stands in."""


@dataclass(frozen=True)
class ChannelGpu:
    """A GPU of a channel: its NVML index, its host's number in the dump, its rank if given."""

    dev: int
    system: int = 0
    rank: int | None = None


@dataclass(frozen=True)
class NcclChannel:
    """The GPUs in the order in which data passes them; ``nets`` are the NICs (enter, leave)."""

    gpus: tuple[ChannelGpu, ...]
    nets: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FoundGraph:
    """What the search found for one algorithm. Speeds are those of one channel."""

    id: int
    pattern: Pattern
    intra_GBps: float
    inter_GBps: float
    latency_us: float
    type_intra: str
    type_inter: str
    same_channels: bool
    channels: tuple[NcclChannel, ...]
    where: str
    unknown: tuple[tuple[str, str], ...] = ()
    """Of the first graph of a dump: what in all of the dump is not known, as words and place."""


def parse(text: str, *, source: str) -> tuple[FoundGraph, ...]:
    """The graphs of a dump.

    Raises:
        GraphError: not such a dump; with source and line.
    """
    root = parse_xml(text, source=source, root="graphs")
    graphs = tuple(map(_graph, root.all("graph")))
    if not graphs:
        raise GraphError(f"{source}: no <graph> in it; dump it from a rank of the job")
    return (replace(graphs[0], unknown=tuple(root.unknown(KNOWN))), *graphs[1:])


def implied(graphs: Iterable[FoundGraph], *, host: str, first_rank: int = 0) -> Fragment:
    """The links that the channels use, both ways: a link carries the other way what it carries
    one way. Of several graphs over one link, the one that loads it most counts.

    Args:
        graphs: What ``parse`` gave.
        host: What the host is called; further ones in the dump get ``-2``, ``-3``, ...
        first_rank: A GPU is rank ``first_rank`` + its NVML index, unless the dump says its rank.

    Raises:
        GraphError: the dump is of several hosts but says no ranks, or one rank of two GPUs; with
            source and line.
    """
    pen = Pen()
    costs: dict[_Pair, LinkCost] = {}
    classes: dict[_Pair, str] = {}
    for graph in graphs:
        loads = _loads(graph, pen, host, first_rank)
        for (a, b), GBps in loads.items():
            pair = (min(a, b), max(a, b))
            cost, link_class = _cost(graph, (a, b), GBps)
            if pair not in costs or cost.bandwidth_bytes_per_s > costs[pair].bandwidth_bytes_per_s:
                costs[pair], classes[pair] = cost, link_class
    for (a, b), cost in costs.items():
        if NETWORK in (a, b):
            pen.node(NETWORK, Kind.SWITCH)
        pen.both_ways(a, b, cost, classes[a, b])
    return pen.fragment()


def _loads(graph: FoundGraph, pen: Pen, host: str, first_rank: int) -> dict[_Pair, float]:
    """GB/s over each link in all channels of ``graph``, whose ends are added to ``pen``."""
    for words, where in graph.unknown:
        pen.say(words, where)
    if graph.pattern not in CHAINS:
        pen.say("graph of NVLS or CollNet is left out: it says nothing of links", graph.where)
        return {}
    loads: dict[_Pair, float] = defaultdict(float)
    for channel in graph.channels:
        gpus = [_rank_node(gpu, pen, host, first_rank, graph.where) for gpu in channel.gpus]
        if len(set(gpus)) != len(gpus):
            raise GraphError(f"{graph.where}: two GPUs of a channel have one rank")
        nets = [pen.node(f"{host}/net{net}", Kind.NIC) for net in channel.nets]
        for src, dst, GBps in _hops(graph, gpus, nets):
            loads[src, dst] += GBps
    return loads


def _hops(
    graph: FoundGraph, gpus: Sequence[str], nets: Sequence[str]
) -> Iterator[tuple[str, str, float]]:
    """(from, to, GB/s) along one channel: from the network and back into it, or around."""
    for src, dst in pairwise(gpus):
        yield src, dst, graph.intra_GBps
    if nets and gpus:
        ways = ((NETWORK, nets[0], gpus[0]), (gpus[-1], nets[-1], NETWORK))
        for way in ways:
            for src, dst in pairwise(way):
                yield src, dst, graph.inter_GBps
    elif graph.pattern is Pattern.RING and len(gpus) > 1:
        yield gpus[-1], gpus[0], graph.intra_GBps


def _cost(graph: FoundGraph, ends: _Pair, GBps: float) -> tuple[LinkCost, str]:
    num_gpus = sum("/rank" in end for end in ends)
    if NETWORK in ends:
        return network_cost(GBps), "network"
    if num_gpus == 2 and graph.type_intra in ("NVL", "NVB"):
        return nvlink_cost(GBps, ends=2), "nvlink"
    if num_gpus == 2 and graph.type_intra == "XGMI":
        return link_cost(GBps, xgmi_link("").hop_us), "xgmi"
    return pcie_cost(GBps, ends=num_gpus), "pcie"


def _rank_node(gpu: ChannelGpu, pen: Pen, host: str, first_rank: int, where: str) -> str:
    if gpu.system and gpu.rank is None:
        raise GraphError(
            f"{where}: the dump is of several hosts and says no ranks; dump it with NCCL 2.29"
        )
    own = host if not gpu.system else f"{host}-{gpu.system + 1}"
    rank = first_rank + gpu.dev if gpu.rank is None else gpu.rank
    return pen.node(rank_name(own, rank), Kind.RANK, rank)


def _graph(element: Element) -> FoundGraph:
    number = element.whole("pattern")
    if number not in set(Pattern):
        raise element.wrong("pattern", f"1 to {max(Pattern)}")
    channels = tuple(map(_channel, element.all("channel")))
    num_channels = element.whole("nchannels")
    if num_channels != len(channels):
        raise GraphError(
            f"{element.where}: nchannels is {num_channels}, but {len(channels)} follow; "
            "is the dump cut off?"
        )
    speeds = [element.number(name, 0) for name in ("speedintra", "speedinter")]
    if channels and not all(speeds):
        raise GraphError(f"{element.where}: channels without a speed; dump it again with NCCL")
    return FoundGraph(
        id=element.whole("id"),
        pattern=Pattern(number),
        intra_GBps=speeds[0],
        inter_GBps=speeds[1],
        latency_us=element.number("latencyinter", 0),
        type_intra=element.text("typeintra", ""),
        type_inter=element.text("typeinter", ""),
        same_channels=bool(element.whole("samechannels", 0)),
        channels=channels,
        where=element.where,
    )


def _channel(element: Element) -> NcclChannel:
    gpus = tuple(map(_gpu, element.all("gpu")))
    if not gpus:
        raise GraphError(f"{element.where}: a channel without a GPU; is the dump cut off?")
    names = {(gpu.system, gpu.dev, gpu.rank) for gpu in gpus}
    if len(names) != len(gpus):
        raise GraphError(f"{element.where}: a GPU is there twice in one channel")
    return NcclChannel(gpus, tuple(net.whole("dev") for net in element.all("net")))


def _gpu(element: Element) -> ChannelGpu:
    number = element.whole("dev")
    system, dev = number >> SYSTEM_BITS, number & ((1 << SYSTEM_BITS) - 1)
    rank = element.whole("rank") if "rank" in element.attributes else None
    if not 0 <= dev < MAX_RANKS or not 0 <= system < MAX_RANKS:
        raise element.wrong("dev", "the number of a GPU")
    if rank is not None and not 0 <= rank < MAX_RANKS:
        raise element.wrong("rank", f"0 to {MAX_RANKS - 1}")
    return ChannelGpu(dev, system, rank)
