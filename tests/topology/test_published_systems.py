"""Systems that the planner was not written with: machines, pods, clusters and homes. What is
optimal on them is derived here by hand, and by the programmes of oracles.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product

import pytest

from tests.topology import oracles
from tests.topology.graphs import GB, both_ways, direct
from trainmesh.topology.answer import answer
from trainmesh.topology.bounds import Bound, bound, cuts
from trainmesh.topology.cost import plan_cost
from trainmesh.topology.graph import Kind, Link, LinkGraph, Node
from trainmesh.topology.validate import check_loads, validate
from trainmesh.types import Collective, LinkCost, Plan

NBYTES = 10**9
NEAR = 1e-6  # relative


def joined(*links: list[Link]) -> LinkGraph:
    """Nodes are those of the links; gN is rank N, all others forward."""
    flat = [link for some in links for link in some]
    names = list(dict.fromkeys(name for link in flat for name in (link.src, link.dst)))
    ranks = sorted((n for n in names if n[0] == "g"), key=lambda name: int(name[1:]))
    nodes = [Node(name, Kind.RANK, rank) for rank, name in enumerate(ranks)]
    nodes += [
        Node(name, Kind.NIC if "nic" in name else Kind.SWITCH)
        for name in names
        if name not in ranks
    ]
    return LinkGraph(nodes, flat)


def one_way(src: str, dst: str, GBps: float) -> list[Link]:
    return [Link(src, dst, LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=GBps * GB))]


def dgx2() -> LinkGraph:
    """16 V100 on two boards; a link of 25 to each of the board's 6 NVSwitches, and 8 such links
    from each of these to its twin."""
    return joined(
        *(
            both_ways(f"g{i}", f"board{i // 8}.{plane}", 25)
            for i in range(16)
            for plane in range(6)
        ),
        *(both_ways(f"board0.{plane}", f"board1.{plane}", 200) for plane in range(6)),
    )


def dgx_h100(hosts: int) -> LinkGraph:
    """NVLink 450 a GPU; a NIC of 50 a GPU, on the rail of its place in the host."""
    ranks = range(8 * hosts)
    rails = [both_ways(f"g{i}", f"rail{i % 8}", 50) for i in ranks if hosts > 1]
    return joined(*(both_ways(f"g{i}", f"nvswitch{i // 8}", 450) for i in ranks), *rails)


def mi300x() -> LinkGraph:
    """Eight, each joined with each."""
    return direct([(a, b, 64) for a, b in combinations(range(8), 2)])


def torus(*sides: int) -> LinkGraph:
    """Rings in every dimension; one of two is a single link."""
    places = list(product(*map(range, sides)))
    number = {place: index for index, place in enumerate(places)}
    pairs = {
        frozenset((number[at], number[(*at[:d], (at[d] + 1) % side, *at[d + 1 :])]))
        for at in places
        for d, side in enumerate(sides)
    }
    return direct([(*sorted(pair), 1) for pair in sorted(pairs, key=sorted)])


def dragonfly(across: float) -> LinkGraph:
    """3 groups of 2 routers of 2 hosts; one link between each two groups."""
    hosts = [both_ways(f"g{i}", f"r{i // 4}.{i // 2 % 2}", 10) for i in range(12)]
    local = [both_ways(f"r{group}.0", f"r{group}.1", 10) for group in range(3)]
    far = [("r0.0", "r1.0"), ("r0.1", "r2.0"), ("r1.1", "r2.1")]
    return joined(*hosts, *local, *(both_ways(a, b, across) for a, b in far))


def fat_tree(spines: Sequence[float]) -> LinkGraph:
    """4 leaves of 2 hosts of 10 each; the leaves' links to each spine."""
    up = enumerate(spines)
    return joined(
        *(both_ways(f"g{i}", f"leaf{i // 2}", 10) for i in range(8)),
        *(both_ways(f"leaf{n}", f"spine{s}", b) for s, b in up for n in range(4)),
    )


def three_tiers() -> LinkGraph:
    """2 pods of 2 racks of 2 hosts of 10; narrower at each tier."""
    return joined(
        *(both_ways(f"g{i}", f"rack{i // 2}", 10) for i in range(8)),
        *(both_ways(f"rack{i}", f"pod{i // 2}", 10) for i in range(4)),
        *(both_ways(f"pod{i}", "core", 4) for i in range(2)),
    )


def nic_hosts() -> LinkGraph:
    """2 hosts of 4 GPUs on a PCIe switch, which shares one NIC."""
    return joined(
        *(both_ways(f"g{i}", f"pcie{i // 4}", 25) for i in range(8)),
        *(both_ways(f"pcie{i}", f"nic{i}", 25) for i in range(2)),
        *(both_ways(f"nic{i}", "leaf", 12.5) for i in range(2)),
    )


def one_way_circle() -> LinkGraph:
    return joined(*(one_way(f"g{i}", f"g{(i + 1) % 6}", 1) for i in range(6)))


def homes() -> LinkGraph:
    """Four homes that download ten times as fast as they upload."""
    return joined(
        *(one_way(f"g{i}", "internet", 4) + one_way("internet", f"g{i}", 40) for i in range(4))
    )


def chain() -> LinkGraph:
    return direct([(i, i + 1, 10) for i in range(4)])


def wireless() -> LinkGraph:
    """Three on the wire, one behind an access point: 5 down, 2 up."""
    return joined(
        *(both_ways(f"g{i}", "switch", 100) for i in range(3)),
        both_ways("switch", "ap", 100),
        one_way("g3", "ap", 2),
        one_way("ap", "g3", 5),
    )


@dataclass(frozen=True)
class System:
    """Optima in GB/s; those of reduce-scatter are those of all-gather unless given. ``reached``:
    other planners than forest that reach the all-reduce's."""

    graph: LinkGraph
    allgather: float
    allreduce: float
    reached: tuple[str, ...] = ()
    reduce_scatter: float | None = None

    def optimum(self, collective: Collective) -> float:
        if collective == Collective.ALLREDUCE:
            return self.allreduce
        if collective == Collective.REDUCE_SCATTER and self.reduce_scatter is not None:
            return self.reduce_scatter
        return self.allgather


# Where a rank's own links limit, an all-gather brings (N - 1) / N through them, and an all-reduce
# takes as long as two. Else what limits stands beside.
SYSTEMS = {
    "DGX-2": System(dgx2(), 16 * 150 / 15, 8 * 150 / 15, ("ring", "hierarchical", "sharded")),
    "DGX H100": System(dgx_h100(1), 8 * 450 / 7, 4 * 450 / 7, ("ring", "sharded")),
    "DGX H100 x2": System(dgx_h100(2), 16 * 500 / 15, 8 * 500 / 15),
    "DGX H100 x4": System(dgx_h100(4), 32 * 500 / 31, 16 * 500 / 31),
    "MI300X": System(mi300x(), 8 * 7 * 64 / 7, 4 * 7 * 64 / 7, ("sharded",)),
    "torus 2x2x4": System(torus(2, 2, 4), 16 * 4 / 15, 8 * 4 / 15),
    "torus 4x4x2": System(torus(4, 4, 2), 32 * 5 / 31, 16 * 5 / 31),
    "dragonfly": System(dragonfly(10), 12 * 10 / 11, 6 * 10 / 11, ("ring",)),
    # 8 of 12 shards enter a group over two links; three groups tell each other everything.
    "dragonfly, narrow": System(dragonfly(2.5), 12 / 8 * 5, 3 * 5 / (2 * 2)),
    "fat tree of 4 spines": System(fat_tree([5] * 4), 8 * 10 / 7, 4 * 10 / 7, ("ring", "sharded")),
    "fat tree of unequal spines": System(fat_tree([8, 2]), 8 * 10 / 7, 4 * 10 / 7),
    # Half of the shards, or everything, enter a pod.
    "three tiers": System(three_tiers(), 2 * 4, 4, ("hierarchical",)),
    # Half of the shards, or everything, enter a host.
    "hosts with a NIC": System(nic_hosts(), 2 * 12.5, 12.5, ("hierarchical",)),
    "one-way circle": System(one_way_circle(), 6 / 5, 6 / 10, ("native", "ring")),
    # The uploads carry each shard 3 times, each byte of an all-reduce 6 times.
    "homes": System(homes(), 16 / 3, 16 / 6, ("native", "ring", "sharded")),
    "chain": System(chain(), 10 * 5 / 4, 10),
    # All but its own share comes down; as much goes up in a reduce-scatter, all of it in both.
    "wireless": System(wireless(), 5 * 4 / 3, 2, (), 2 * 4 / 3),
}
every_system = pytest.mark.parametrize("name", SYSTEMS)
every_case = pytest.mark.parametrize(("name", "collective"), [*product(SYSTEMS, Collective)])
MAX_FLOWS = 20
"""Ranks for which the oracle takes no more than a second. Larger systems are held between the
bound and what the plans reach."""


@cache
def plans(name: str, collective: Collective) -> tuple[Bound, str, tuple[Plan, ...]]:
    found = answer(SYSTEMS[name].graph, collective, NBYTES)
    return found.bound, found.choice.chosen, found.choice.candidates


@pytest.mark.parametrize("name", [n for n, s in SYSTEMS.items() if s.graph.world_size <= MAX_FLOWS])
def test_what_is_derived_by_hand_is_the_optimum(name: str) -> None:
    system = SYSTEMS[name]
    for collective, optimum in (
        (Collective.ALLREDUCE, oracles.all_reduce),
        (Collective.ALLGATHER, oracles.all_gather),
        (Collective.REDUCE_SCATTER, oracles.reduce_scatter),
    ):
        assert optimum(system.graph) / GB == pytest.approx(system.optimum(collective), rel=NEAR)


@pytest.mark.slow
@every_case
def test_the_bound_is_the_optimum_where_it_says_so(name: str, collective: Collective) -> None:
    system = SYSTEMS[name]
    least, _, candidates = plans(name, collective)
    algbw = NBYTES / least.time_s / GB
    assert algbw >= system.optimum(collective) * (1 - 1e-6)
    if least.exact:
        assert algbw == pytest.approx(system.optimum(collective), rel=NEAR)
    else:
        assert collective != Collective.ALLREDUCE
        assert name in ("homes", "wireless", "one-way circle")
    if least.kind == "cut":
        leaving = sum(
            link.cost.bandwidth_bytes_per_s
            for link in system.graph.links
            if link.src in least.cut and link.dst not in least.cut
        )
        ranks = {system.graph.rank_node(rank) for rank in range(system.graph.world_size)}
        inside, count = len(ranks & {*least.cut}), len(ranks)
        shards = {"allreduce": count, "allgather": inside, "reduce_scatter": count - inside}
        assert algbw * GB == pytest.approx(count * leaving / shards[collective], rel=NEAR)
    assert candidates


@every_case
def test_plans_are_proven_and_as_good_as_they_can_be(name: str, collective: Collective) -> None:
    system = SYSTEMS[name]
    _, chosen, candidates = plans(name, collective)
    optimum = system.optimum(collective) * GB
    by_name = {plan.algorithm: plan for plan in candidates}
    for plan in candidates:
        validate(plan, system.graph.world_size)
        check_loads(plan, system.graph, plan_cost(plan, system.graph).loads)
        assert 0 < plan.efficiency <= 1 + 1e-9
        assert plan.algbw_bytes_per_s <= optimum * (1 + 1e-6)
    least = 0.98 if collective == Collective.ALLREDUCE else 0.999
    assert by_name["forest"].algbw_bytes_per_s >= least * optimum
    assert by_name[chosen].algbw_bytes_per_s >= least * optimum
    if collective == Collective.ALLREDUCE:
        for algorithm in system.reached:
            assert by_name[algorithm].algbw_bytes_per_s == pytest.approx(optimum, rel=NEAR)


@every_system
def test_names_and_numbers_of_ranks_do_not_matter(name: str) -> None:
    """Bounds of the same links between nodes called otherwise, ranks numbered from the end."""
    system = SYSTEMS[name]
    count = len(system.graph.nodes)
    called = {node.name: f"n{count - i}" for i, node in enumerate(system.graph.nodes)}
    nodes = [
        Node(
            called[node.name],
            node.kind,
            None if node.rank is None else system.graph.world_size - 1 - node.rank,
        )
        for node in reversed(system.graph.nodes)
    ]
    links = [Link(called[li.src], called[li.dst], li.cost) for li in reversed(system.graph.links)]
    other = LinkGraph(nodes, links)
    for collective in Collective:
        expected = plans(name, collective)[0].time_s
        assert bound(other, NBYTES, collective).time_s == pytest.approx(expected, rel=1e-9)


@every_system
def test_large_clusters_are_bounded_in_the_same_way(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking nodes that look alike together loses nothing on any of these."""
    monkeypatch.setattr(cuts, "EXACT_WORK", 0)
    graph = SYSTEMS[name].graph
    for collective in Collective:
        expected = plans(name, collective)[0].time_s
        found = bound(LinkGraph(graph.nodes, graph.links), NBYTES, collective)
        assert found.time_s == pytest.approx(expected, rel=1e-9)
