"""Rank names and capacities of published systems and of random graphs, with their optima."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import reduce
from math import lcm

import numpy as np
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import lil_array

from trainmesh.topology.flow import FlowNetwork
from trainmesh.topology.forest.trees import Arc

Graph = tuple[list[str], dict[Arc, Fraction]]

DGX1V = [
    (0, 1, 25), (0, 2, 25), (0, 3, 50), (0, 4, 50), (1, 2, 50), (1, 3, 25), (1, 5, 50), (2, 3, 50),
    (2, 6, 25), (3, 7, 25), (4, 5, 25), (4, 6, 25), (4, 7, 50), (5, 6, 50), (5, 7, 25), (6, 7, 50),
]  # fmt: skip
# Links of 50 GB/s between the 16 dies of 8 MI250 (one server), as ForestColl's repository has them.
MI250 = [
    (0, 1, 4), (0, 4, 2), (0, 8, 1), (1, 5, 1), (1, 9, 1), (1, 10, 1), (2, 3, 4), (2, 6, 1),
    (2, 9, 1), (2, 10, 1), (3, 7, 2), (3, 11, 1), (4, 5, 4), (4, 6, 1), (5, 6, 1), (5, 7, 1),
    (6, 7, 4), (8, 9, 4), (8, 12, 2), (9, 13, 1), (10, 11, 4), (10, 14, 1), (11, 15, 2),
    (12, 13, 4), (12, 14, 1), (13, 14, 1), (13, 15, 1), (14, 15, 4),
]  # fmt: skip


def graph(ranks: int, links: Iterable[tuple[str, str, Fraction | float]]) -> Graph:
    """Links both ways; a bandwidth of 0 is no link."""
    capacities: dict[Arc, Fraction] = {}
    for a, b, bandwidth in links:
        if bandwidth:
            capacities[a, b] = capacities[b, a] = Fraction(bandwidth)
    return [f"g{rank}" for rank in range(ranks)], capacities


def star(nics: Sequence[float | Fraction]) -> Graph:
    return graph(len(nics), [(f"g{rank}", "switch", nic) for rank, nic in enumerate(nics)])


def direct(links: Iterable[tuple[int, int, float]]) -> Graph:
    links = list(links)
    count = 1 + max(max(a, b) for a, b, _ in links)
    return graph(count, [(f"g{a}", f"g{b}", bandwidth) for a, b, bandwidth in links])


def dgx1v(link_0_4: float = 50) -> Graph:
    return direct((a, b, link_0_4 if (a, b) == (0, 4) else w) for a, b, w in DGX1V)


def mi250() -> Graph:
    return direct((a, b, 50 * w) for a, b, w in MI250)


def ring(count: int) -> Graph:
    return direct((rank, (rank + 1) % count, 1) for rank in range(count))


def hypercube() -> Graph:
    return direct((a, a ^ bit, 1) for a in range(8) for bit in (1, 2, 4) if not a & bit)


def grid(*, torus: bool) -> Graph:
    """4 x 4."""
    steps = [
        (i, j, i + di, j + dj) for i in range(4) for j in range(4) for di, dj in ((0, 1), (1, 0))
    ]
    return direct(
        (4 * i + j, 4 * (k % 4) + m % 4, 1) for i, j, k, m in steps if torus or max(k, m) < 4
    )


def hgx(hosts: int, nic0: float = 25) -> Graph:
    """8 A100 around an NVSwitch in each host; two rail switches."""
    links: list[tuple[str, str, float]] = []
    for rank in range(8 * hosts):
        links.append((f"g{rank}", f"nvswitch{rank // 8}", 300))
        if hosts > 1:
            links.append((f"g{rank}", f"rail{rank % 2}", 25 if rank else nic0))
    return graph(8 * hosts, links)


def leaf_spine(
    leaves: int, hosts: int, uplinks: Sequence[float | Fraction], host0: float = 25
) -> Graph:
    """``uplinks`` of each leaf, one to each spine."""
    links = [(f"leaf{i}", f"spine{j}", up) for i in range(leaves) for j, up in enumerate(uplinks)]
    for rank in range(leaves * hosts):
        links.append((f"g{rank}", f"leaf{rank // hosts}", 25 if rank else host0))
    return graph(leaves * hosts, links)


def uneven(given: Graph) -> Graph:
    """Every direction of every link measured a little, and differently, below its bandwidth."""
    ranks, capacities = given
    return ranks, {
        arc: Fraction(f"{float(b) * (1 - 0.05 * (7 * i % 11) / 11):.11e}")
        for i, (arc, b) in enumerate(capacities.items())
    }


@st.composite
def random_graphs(draw: st.DrawFn, ranks: st.SearchStrategy[int], *, duplex: bool) -> Graph:
    """A tree of switches and ranks, with some links more; leaves may hang on ranks."""
    count, switches = draw(ranks), draw(st.integers(0, 5))
    names = [f"s{i}" for i in range(switches)] + [f"g{i}" for i in range(count)]
    ends = [(draw(st.integers(0, i - 1)), i) for i in range(1, len(names))]
    ends += draw(
        st.lists(
            st.tuples(st.integers(0, len(names) - 1), st.integers(0, len(names) - 1)),
            max_size=count,
        )
    )
    bandwidths = st.sampled_from([Fraction(5, 2), Fraction(10), Fraction(25), Fraction(40)])
    capacities: dict[Arc, Fraction] = {}
    for a, b in ends:
        if a != b:
            there = draw(bandwidths)
            capacities[names[a], names[b]] = there
            capacities[names[b], names[a]] = there if duplex else draw(bandwidths)
    return [f"g{i}" for i in range(count)], capacities


def cut_optimum(given: Graph) -> Fraction:
    """x*: the least capacity out of a set of nodes for each rank in it, over all sets that leave
    out a rank; by discrete Newton."""
    ranks, capacities = given
    number = {name: i for i, name in enumerate(dict.fromkeys([*ranks, *_names(capacities)]))}
    unit = reduce(lcm, (c.denominator for c in capacities.values()))
    edges = [(number[a], number[b], int(c * unit)) for (a, b), c in capacities.items()]
    count, source = len(ranks), len(number)
    x = Fraction(min(sum(c for _, head, c in edges if head == r) for r in range(count)), count - 1)
    for rank in range(count):
        while True:
            scaled = [(a, b, c * x.denominator) for a, b, c in edges]
            scaled += [(source, r, x.numerator) for r in range(count)]
            value, side = FlowNetwork(source + 1, scaled).min_cut(source, rank)
            if value >= count * x.numerator:
                break
            leaving = sum(c for a, b, c in edges if a in side and b not in side)
            x = Fraction(leaving, sum(r in side for r in range(count)))
    return x / unit


def flow_optimum(given: Graph) -> float:
    """The rate of each rank's broadcast when switches only forward: a linear programme with a
    flow to each rank inside capacities that are balanced at switches. Independent of the cuts."""
    ranks, capacities = given
    names = list(dict.fromkeys([*ranks, *_names(capacities)]))
    arcs = [(names.index(a), names.index(b)) for a, b in capacities]
    count, size, width = len(ranks), len(names), len(arcs)
    # Variables: c of the arcs, then a flow to each rank, then x.
    total = width * (count + 1) + 1
    equal = lil_array(((count + 1) * size, total))
    for column, (tail, head) in enumerate(arcs):
        for copy in range(count + 1):
            equal[copy * size + tail, copy * width + column] = -1
            equal[copy * size + head, copy * width + column] = 1
    for sink in range(count):
        for rank in range(count):
            equal[(sink + 1) * size + rank, total - 1] = 1 if rank != sink else 1 - count
    within = lil_array((count * width, total))
    for row in range(count * width):
        within[row, width + row], within[row, row % width] = 1, -1
    ranks_of_c = np.arange(equal.shape[0]) >= count
    bounds = [(0, float(c)) for c in capacities.values()] + [(0, None)] * (total - width)
    found = linprog(
        [0.0] * (total - 1) + [-1.0],
        A_ub=within.tocsr(),
        b_ub=np.zeros(count * width),
        A_eq=equal.tocsr()[ranks_of_c],
        b_eq=np.zeros(int(ranks_of_c.sum())),
        bounds=bounds,
    )
    return -float(found.fun)


def _names(capacities: Iterable[Arc]) -> list[str]:
    return sorted({name for arc in capacities for name in arc})
