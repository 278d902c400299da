"""Graphs for the tests: stars, racks, and random ones."""

from collections.abc import Sequence

from hypothesis import strategies as st

from trainmesh.topology.graph import Kind, Link, LinkGraph, Node
from trainmesh.types import LinkCost

GB = 1e9


def both_ways(a: str, b: str, GBps: float, alpha_us: float = 0.0) -> list[Link]:
    cost = LinkCost(alpha_s=alpha_us * 1e-6, bandwidth_bytes_per_s=GBps * GB)
    return [Link(a, b, cost), Link(b, a, cost)]


def star(nics: Sequence[float], *, alpha_us: float = 0.0) -> LinkGraph:
    nodes = [Node("switch", Kind.SWITCH)]
    links = []
    for rank, speed in enumerate(nics):
        nodes.append(Node(f"g{rank}", Kind.RANK, rank))
        links += both_ways(f"g{rank}", "switch", speed, alpha_us)
    return LinkGraph(nodes, links)


def racks(
    order: Sequence[int],
    *,
    uplink: float,
    nic: float = 25,
    per_rack: int = 4,
    slow_host: float | None = None,
) -> LinkGraph:
    """Hosts in racks of ``per_rack``; host i has rank order[i]. The racks meet in a core.
    ``slow_host`` is the NIC of host 0, if it has another one."""
    count = len(order) // per_rack
    nodes = [Node("core", Kind.SWITCH)]
    links = []
    for rack in range(count):
        nodes.append(Node(f"leaf{rack}", Kind.SWITCH))
        links += both_ways(f"leaf{rack}", "core", uplink)
    for host, rank in enumerate(order):
        nodes.append(Node(f"h{host}", Kind.RANK, rank))
        speed = nic if host or slow_host is None else slow_host
        links += both_ways(f"h{host}", f"leaf{host // per_rack}", speed)
    return LinkGraph(nodes, links)


def direct(links: Sequence[Sequence[float]]) -> LinkGraph:
    """Ranks joined without a switch; links are (rank, rank, GB/s), both ways."""
    count = 1 + max(int(end) for link in links for end in link[:2])
    nodes = [Node(f"g{rank}", Kind.RANK, rank) for rank in range(count)]
    ways = [way for a, b, GBps in links for way in both_ways(f"g{a:.0f}", f"g{b:.0f}", GBps)]
    return LinkGraph(nodes, ways)


def hgx(hosts: int, nic0: float = 25) -> LinkGraph:
    """Hosts of 8 GPUs around an NVSwitch; two rail switches join the hosts."""
    nodes = [Node(f"rail{parity}", Kind.SWITCH) for parity in range(2 if hosts > 1 else 0)]
    links = []
    for host in range(hosts):
        nodes.append(Node(f"nvswitch{host}", Kind.SWITCH))
        for gpu in range(8):
            rank = host * 8 + gpu
            nodes.append(Node(f"g{rank}", Kind.RANK, rank))
            links += both_ways(f"g{rank}", f"nvswitch{host}", 300)
            if hosts > 1 and (rank or nic0):
                links += both_ways(f"g{rank}", f"rail{gpu % 2}", 25 if rank else nic0)
    return LinkGraph(nodes, links)


@st.composite
def random_graphs(draw: st.DrawFn, max_ranks: int = 6, min_ranks: int = 2) -> LinkGraph:
    """A random tree of ranks and switches, both ways, with some links more, both ways or one;
    speeds differ by direction."""
    ranks = draw(st.integers(min_ranks, max_ranks))
    switches = draw(st.integers(0, 3))
    names = [f"s{i}" for i in range(switches)] + [f"g{i}" for i in range(ranks)]
    nodes = [Node(f"s{i}", Kind.SWITCH) for i in range(switches)]
    nodes += [Node(f"g{i}", Kind.RANK, i) for i in range(ranks)]
    ways: dict[tuple[str, str], None] = {}
    for i in range(1, len(names)):
        parent = names[draw(st.integers(0, i - 1))]
        ways |= {(parent, names[i]): None, (names[i], parent): None}
    for _ in range(draw(st.integers(0, 1 + ranks // 2))):
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        if a != b:
            ways[a, b] = None
            if draw(st.booleans()):
                ways[b, a] = None
    speeds = st.sampled_from([1.0, 2.5, 10.0, 25.0])
    links = []
    for src, dst in ways:
        cost = LinkCost(
            alpha_s=draw(st.sampled_from([0.0, 5e-6])), bandwidth_bytes_per_s=draw(speeds) * GB
        )
        links.append(Link(src, dst, cost))
    return LinkGraph(nodes, links)
