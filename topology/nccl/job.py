"""What NCCL's cost model knows of a job, given by hand or read from a link graph.

The assumptions of ``from_graph``, because a link graph says less than NCCL sees:

- All hosts are like the first one, whose ranks are the first of ``islands``.
- Inside a host, the bandwidth is that of the narrowest link on the cheapest paths between
  neighbouring ranks. Several direct NVLinks side by side are not added up.
- It is NVLink if a link's class begins with ``nv`` or it is faster than PCIe 5 x16. NCCL counts
  0.8 of NVLink's nominal bandwidth (``topo.h``): a declared one is taken as nominal, one that was
  discovered or measured as what NCCL counts.
- A NIC is the first node of that kind on the path to the next host, or, without one, what is left
  when that path enters a switch for the first time; two ranks share a NIC if the last link up to
  there is the same. What is behind, NCCL never sees.
- Channels are found as NCCL's search (``search.cc``) would on such a host if every ring could
  pass every GPU; the real search may settle for less.
- NICs add no latency (``latencyinter`` 0, as InfiniBand and sockets report), each is close enough
  to its GPU for LL128, and there is no CollNet.
- From Hopper on, ranks around a switch of NVLink have multicast (NVLS).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trainmesh.errors import ConfigError
from trainmesh.topology.graph import Kind, Link, LinkGraph, Provenance
from trainmesh.topology.nccl.tables import Generation, speeds
from trainmesh.types import MAX_RANKS

__all__ = ["NO_RCCL", "Cpu", "NcclGraph", "NcclJob", "from_graph", "has_gpu_links", "is_of_amd"]

MAX_CHANNELS = 64
"""NCCL's MAXCHANNELS."""
MAX_SEARCH_CHANNELS = 32
"""What NCCL's search looks for before it doubles them."""
FASTEST_PCI_GBps = 64.0
XGMI = "xgmi"
NO_RCCL = (
    "NCCL's model knows NVIDIA's GPUs only, and these links are of AMD's (xgmi), where RCCL decides"
)
GPU_CLASSES = frozenset({"c2c", "infiniband", "pcie", "roce", XGMI})
"""Classes of links, beside NVLink's, that carry a job's bytes for NCCL or RCCL and not for gloo."""
NVLINK_SHARE = {
    Generation.VOLTA: 20.0 / 25,
    Generation.AMPERE: 20.0 / 25,
    Generation.HOPPER: 20.6 / 25,
    Generation.BLACKWELL: 40.1 / 50,
}
"""NCCL's bandwidth of one NVLink over the nominal one."""
FALLBACK_GBps = 0.1
"""Of the one channel that NCCL uses if its search finds none."""


class Cpu(StrEnum):
    """Vendor of the hosts' CPUs; NCCL expects more of some than of others."""

    INTEL = "intel"
    AMD = "amd"
    ARM = "arm"


@dataclass(frozen=True, kw_only=True)
class NcclGraph:
    """What NCCL's search found for one pattern, as in ``NCCL_GRAPH_DUMP_FILE``: ``nchannels``,
    ``speedintra`` and ``speedinter`` (GB/s of one channel), ``typeintra`` NVL or not,
    ``latencyinter`` (microseconds). ``ll128`` says if LL128 is safe on its paths: ``typeintra`` at
    most NVB, ``typeinter`` at most PXB (from Hopper on: PXN)."""

    num_channels: int
    intra_GBps: float
    inter_GBps: float
    nvlink: bool = True
    ll128: bool = True
    latency_us: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_channels <= MAX_CHANNELS:
            raise ConfigError(f"num_channels must be 1 to {MAX_CHANNELS}, not {self.num_channels}")
        for name in ("intra_GBps", "inter_GBps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if not 0 <= self.latency_us < math.inf:
            raise ConfigError(f"latency_us must be finite and >= 0, not {self.latency_us}")


@dataclass(frozen=True, kw_only=True)
class NcclJob:
    """What the model depends on beside the collective and its size.

    ``plain_tree``: the tree's pattern is NCCL's simplest (``pattern`` 3 in the dump), so that all
    of a node's traffic passes one GPU. ``nvls`` is None where there is no NVLink multicast,
    ``collnet_direct`` and ``collnet_chain`` where there is no CollNet (SHARP).
    """

    num_ranks: int
    num_nodes: int
    generation: Generation
    ring: NcclGraph
    tree: NcclGraph
    nvls: NcclGraph | None = None
    collnet_direct: NcclGraph | None = None
    collnet_chain: NcclGraph | None = None
    plain_tree: bool = False
    cpu: Cpu = Cpu.INTEL

    def __post_init__(self) -> None:
        if not 1 <= self.num_ranks <= MAX_RANKS:
            raise ConfigError(f"num_ranks must be 1 to {MAX_RANKS}, not {self.num_ranks}")
        if not 1 <= self.num_nodes <= self.num_ranks:
            raise ConfigError(f"num_nodes must be 1 to num_ranks, not {self.num_nodes}")
        if self.nvls is not None and not self.nvls.nvlink:
            raise ConfigError("nvls must have nvlink: it is multicast over NVLink")

    @property
    def num_channels(self) -> int:
        """Of the communicator: twice what the search found."""
        return min(MAX_CHANNELS, 2 * self.ring.num_channels)

    @property
    def scale(self) -> int:
        """Column of the tables."""
        return min(self.num_nodes, 3) - 1

    @property
    def local_ranks(self) -> int:
        return self.num_ranks // self.num_nodes


@dataclass(frozen=True)
class _Host:
    """The first host: its number of ranks, GB/s inside, and of each NIC."""

    num_ranks: int
    inside_GBps: float
    nvlink: bool
    switched: bool
    nics_GBps: tuple[float, ...]


def from_graph(
    graph: LinkGraph,
    islands: Sequence[Sequence[int]],
    generation: Generation,
    *,
    cpu: Cpu = Cpu.INTEL,
) -> NcclJob:
    """The job as NCCL would see it; ``islands`` are the ranks of each host. See the module's
    text for what is assumed.

    Raises:
        ConfigError: the islands do not hold every rank once, or the GPUs are AMD's.
    """
    if is_of_amd(graph):
        raise ConfigError(NO_RCCL)
    if sorted(rank for island in islands for rank in island) != list(range(graph.world_size)):
        raise ConfigError(f"the islands must hold each of the {graph.world_size} ranks once")
    if not all(islands):
        raise ConfigError("an island has no rank")
    host = _host(graph, islands, generation)
    across = len(islands) > 1
    num_channels, GBps = _search(host, generation, across=across)
    tree_GBps = _largest(generation, across, min(2 * GBps, host.inside_GBps / num_channels))

    def found(intra_GBps: float) -> NcclGraph:
        return NcclGraph(
            num_channels=num_channels,
            intra_GBps=intra_GBps,
            inter_GBps=GBps,
            nvlink=host.nvlink,
            ll128=host.nvlink,
        )

    return NcclJob(
        num_ranks=graph.world_size,
        num_nodes=len(islands),
        generation=generation,
        ring=found(GBps),
        tree=found(max(GBps, tree_GBps)),
        nvls=_multicast(host, generation, GBps, across=across),
        plain_tree=host.num_ranks == 1,
        cpu=cpu,
    )


def has_gpu_links(graph: LinkGraph) -> bool:
    """Whether some link is one of GPUs, by its class or because nothing else is so fast."""
    return any(
        _is_nvlink(link) or link.link_class.lower() in GPU_CLASSES or _GBps(link) > FASTEST_PCI_GBps
        for link in graph.links
    )


def is_of_amd(graph: LinkGraph) -> bool:
    """Whether the links are of AMD's GPUs, which run RCCL: it has tables of its own."""
    return any(link.link_class.lower().startswith(XGMI) for link in graph.links)


def _host(graph: LinkGraph, islands: Sequence[Sequence[int]], generation: Generation) -> _Host:
    first = islands[0]
    paths = [graph.path(a, b) for a, b in zip(first, (*first[1:], first[0]), strict=True)]
    inside = [link for path in paths for link in path]
    own = {graph.rank_node(rank) for rank in first} | {link.dst for link in inside}
    kinds = {node.name: node.kind for node in graph.nodes}
    nics: dict[str, float] = {}
    if len(islands) > 1:
        for place, rank in enumerate(first):
            path = graph.path(rank, islands[1][place % len(islands[1])])
            way_out = _way_out(path, own, kinds)
            nics[way_out[-1].name] = min(_GBps(link) for link in way_out)
    GBps = min(map(_GBps, inside), default=math.inf)
    nvlink = bool(inside) and (GBps > FASTEST_PCI_GBps or all(_is_nvlink(link) for link in inside))
    nominal = any(link.provenance <= Provenance.DECLARED for link in inside)
    return _Host(
        num_ranks=len(first),
        inside_GBps=GBps * NVLINK_SHARE[generation] if nvlink and nominal else GBps,
        nvlink=nvlink,
        switched=any(kinds[link.dst] is Kind.SWITCH for link in inside),
        nics_GBps=tuple(nics.values()),
    )


def _way_out(path: Sequence[Link], own: Collection[str], kinds: Mapping[str, Kind]) -> list[Link]:
    """The links of ``path`` up to and through the host's NIC."""
    has_nic = any(kinds[link.src] is Kind.NIC for link in path)
    way_out: list[Link] = []
    for link in path:
        way_out.append(link)
        entered = link.dst not in own and kinds[link.dst] is Kind.SWITCH
        if kinds[link.src] is Kind.NIC if has_nic else entered:
            break
    return way_out


def _GBps(link: Link) -> float:
    return link.cost.bandwidth_bytes_per_s / 1e9


def _is_nvlink(link: Link) -> bool:
    return link.link_class.lower().startswith("nv")


def _search(host: _Host, generation: Generation, *, across: bool) -> tuple[int, float]:
    """How many rings fit, and GB/s of each: the most in all, as few as possible, but twice as
    many of half the bandwidth where one channel would have to carry much."""
    best, best_GBps = 0, 0.0
    for GBps in speeds(generation, across_nodes=across):
        if best and GBps <= 0.49 * best_GBps:
            break
        fitting = float(MAX_SEARCH_CHANNELS)
        if across:
            fitting = min(fitting, sum(nic // GBps for nic in host.nics_GBps))
        fitting = min(fitting, host.inside_GBps // GBps)
        if fitting * GBps > best * best_GBps:
            best, best_GBps = int(fitting), GBps
    if not best:
        return 1, FALLBACK_GBps
    many = generation >= Generation.HOPPER and best_GBps < 50 and best > 4
    if best_GBps < 25 or many:
        return best, best_GBps
    doubled = min(2 * best, MAX_SEARCH_CHANNELS)
    return doubled, best_GBps / math.ceil(doubled / best)


def _largest(generation: Generation, across: bool, limit_GBps: float) -> float:
    return next((s for s in speeds(generation, across_nodes=across) if s <= limit_GBps), 0.0)


def _multicast(
    host: _Host, generation: Generation, GBps: float, *, across: bool
) -> NcclGraph | None:
    """NVLS: one channel for each GPU, or for each NIC; its head sends twice, the others once."""
    if generation < Generation.HOPPER or not (host.nvlink and host.switched):
        return None
    num_channels = len(host.nics_GBps) if across else host.num_ranks
    intra = _largest(generation, across, host.inside_GBps / (host.num_ranks + 1))
    if not intra:
        return None
    inter = GBps if across else _largest(generation, across, host.inside_GBps)
    return NcclGraph(num_channels=num_channels, intra_GBps=intra, inter_GBps=inter)
