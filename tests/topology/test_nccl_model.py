"""NCCL's own choice: the tables that NCCL printed on real machines, its published choices, rows
worked out by hand, and what must hold anywhere."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.graphs import both_ways, direct, hgx, racks, star
from trainmesh.errors import ConfigError
from trainmesh.topology.graph import Kind, LinkGraph, Node
from trainmesh.topology.nccl.job import Cpu, NcclGraph, NcclJob, from_graph
from trainmesh.topology.nccl.model import NcclCost, crossovers, predict
from trainmesh.topology.nccl.tables import Generation, NcclAlgorithm
from trainmesh.types import Collective

MIB = 2**20


def channels(number: int, intra: float, inter: float, **more: Any) -> NcclGraph:
    return NcclGraph(num_channels=number, intra_GBps=intra, inter_GBps=inter, **more)


def costs(job: NcclJob, collective: Collective, nbytes: int) -> dict[str, NcclCost]:
    return {cost.name: cost for cost in predict(job, collective, nbytes).candidates}


def chosen(job: NcclJob, collective: Collective, nbytes: int) -> str:
    return predict(job, collective, nbytes).chosen.name


SOCKETS = NcclJob(
    num_ranks=2,
    num_nodes=2,
    generation=Generation.BLACKWELL,
    ring=channels(2, 1.2, 1.2, nvlink=False, ll128=False),
    tree=channels(2, 2.4, 1.2, nvlink=False, ll128=False),
    plain_tree=True,
)
H100 = NcclJob(
    num_ranks=8,
    num_nodes=1,
    generation=Generation.HOPPER,
    ring=channels(12, 30, 30),
    tree=channels(12, 30, 30),
    nvls=channels(8, 40, 60),
)
A100_PODS = NcclJob(
    num_ranks=32,
    num_nodes=4,
    generation=Generation.AMPERE,
    ring=channels(8, 24, 20, latency_us=1.0),
    tree=channels(8, 30, 24, latency_us=1.0),
)


@pytest.mark.parametrize(
    ("collective", "printed"),
    [
        (
            Collective.ALLREDUCE,
            {
                "tree/LL": (16.8, 0.5),
                "tree/Simple": (36.4, 1.9),
                "ring/LL": (16.6, 1.2),
                "ring/Simple": (36.4, 2.4),
            },
        ),
        (
            Collective.ALLGATHER,
            {"ring/LL": (11.6, 2.4), "ring/Simple": (22.4, 4.8), "pat/Simple": (17.6, 3.6)},
        ),
        (
            Collective.REDUCE_SCATTER,
            {"ring/LL": (11.6, 2.4), "ring/Simple": (22.4, 4.8), "pat/Simple": (17.6, 3.6)},
        ),
    ],
)
def test_the_table_that_nccl_printed(
    collective: Collective, printed: dict[str, tuple[float, float]]
) -> None:
    """NCCL 2.29.7, NCCL_DEBUG_SUBSYS=TUNING: latency in microseconds / algbw in GB/s, of two
    hosts with one RTX 5090 each over sockets. The correction of trees is not in the table: at 32
    bytes there is none."""
    found = costs(SOCKETS, collective, 32)
    rounded = {
        name: (round(cost.latency_s * 1e6, 1), round(cost.bandwidth_bytes_per_s / 1e9, 1))
        for name, cost in found.items()
    }
    assert rounded == printed


def test_the_choices_that_nccl_made_on_eight_h100() -> None:
    """NCCL 2.30.7 on one HGX H100, 256 B to 4 GiB: ring with LL up to 1 MiB, NVLS from 2 MiB; no
    tree and no LL128. The channels are those of the dump in nccl#1197."""
    choices = [chosen(H100, Collective.ALLREDUCE, 2**power) for power in range(8, 33)]
    assert choices == ["ring/LL"] * 13 + ["nvls/Simple"] * 12
    # 15.0 us + n / 80.5714 GB/s against 25.0 us + n / 272 GB/s
    meet = 10.0 / (1 / 80_571.428571 - 1 / 272_000)
    assert meet == pytest.approx(1_144_836, abs=1)
    assert crossovers(H100, Collective.ALLREDUCE) == [(1_144_836, "ring/LL", "nvls/Simple")]


@pytest.mark.parametrize(
    ("job", "collective", "name", "nbytes", "latency_us", "GBps"),
    [
        # base + 14 hops; half the bus, 8/14 of it
        (H100, Collective.ALLREDUCE, "ring/LL", MIB, 6.6 + 14 * 0.6, 141 * 8 / 14),
        (H100, Collective.ALLREDUCE, "ring/LL128", MIB, 14 + 14 * 1.9, 0.92 * 360 * 8 / 14),
        (H100, Collective.ALLREDUCE, "ring/Simple", MIB, 8.4 + 14 * 3.4, 360 * 8 / 14),
        # 7 hops up, 7 down; half of it, and 0.4 or 0.5 of that at 1 MiB
        (H100, Collective.ALLREDUCE, "tree/LL", MIB, 6.8 + 14 * 0.6, 0.5 * 0.5 * 331.2 / 3.8),
        (H100, Collective.ALLREDUCE, "tree/LL128", MIB, 14 + 14 * 1.25, 0.6 * 0.5 * 331.2 * 7 / 9),
        (H100, Collective.ALLREDUCE, "tree/Simple", MIB, 8.4 + 14 * 4.0, 0.5 * 0.5 * 331.2),
        # 2 * 0.85 * 40 * 7/8 of 60 possible
        (H100, Collective.ALLREDUCE, "nvls/Simple", MIB, 25.0, 8 * 59.5 * 8 / 14),
        (H100, Collective.ALLGATHER, "ring/Simple", MIB, 8.4 + 7 * 3.4, 360 * 8 / 7),
        (H100, Collective.ALLGATHER, "nvls/Simple", MIB, 25.0, 8 * 40 * 0.85 * 7 / 8 * 7 / 8),
        # 56 hops inside, where posting to the network takes longer than NVLink, and 6 across
        (A100_PODS, Collective.ALLREDUCE, "ring/LL", MIB, 6.6 + 56 * 1.0 + 6 * 3.7, 20.4 * 32 / 62),
        (
            A100_PODS,
            Collective.ALLREDUCE,
            "ring/Simple",
            MIB,
            1.4 * (8.4 + 56 * 3.4 + 6 * 16.0),
            8 * 20 * 32 / 62,
        ),
        (
            A100_PODS,
            Collective.ALLREDUCE,
            "ring/Simple",
            16 * 32 * 64 - 1,
            8.4 + 56 * 3.4 + 6 * 16.0,
            8 * 20 * 32 / 62,
        ),
        (
            A100_PODS,
            Collective.ALLGATHER,
            "ring/LL128",
            MIB,
            14 + 28 * 1.9 + 3 * 5,
            147.2 * 32 / 31,
        ),
        # 2 * (7 hops inside, 2 across); 8 * min(0.92 * 24, 17.8) = 142.4
        (
            A100_PODS,
            Collective.ALLREDUCE,
            "tree/LL128",
            MIB,
            14 + 2 * (7 * 1.25 + 2 * 9.5),
            0.6 * 0.5 * 133.5,
        ),
        (
            A100_PODS,
            Collective.ALLREDUCE,
            "tree/LL",
            512 * MIB,
            6.8 + 2 * (7 * 0.6 + 2 * 6.0),
            0.5 * 20.4,
        ),
    ],
)
def test_rows_worked_out_by_hand(
    job: NcclJob, collective: Collective, name: str, nbytes: int, latency_us: float, GBps: float
) -> None:
    cost = costs(job, collective, nbytes)[name]
    assert cost.latency_s * 1e6 == pytest.approx(latency_us)
    assert cost.bandwidth_bytes_per_s / 1e9 == pytest.approx(GBps)
    assert cost.time_s * 1e6 == pytest.approx(latency_us + nbytes / (1000 * GBps))


def test_collnet_and_nvls_across_nodes() -> None:
    """Four nodes of eight H100 with SHARP."""
    sharp = NcclJob(
        num_ranks=32,
        num_nodes=4,
        generation=Generation.HOPPER,
        ring=channels(8, 45, 45),
        tree=channels(8, 45, 45),
        nvls=channels(8, 40, 45),
        collnet_direct=channels(8, 40, 40),
        collnet_chain=channels(8, 40, 40),
    )
    found = costs(sharp, Collective.ALLREDUCE, MIB)
    expected = {
        # one GPU a channel; 0.85 from Hopper on
        "collnetdirect/Simple": (2 * (3.7 + 7 * 0.4) + 31.0, 0.5 * 0.85 * 320),
        "collnetchain/Simple": (2 * 7 * 2.8 + 30.0, 0.5 * 320),
        "nvls/Simple": (25.0 + 18.0, 8 * 45 * 32 / 62),
        "nvlstree/Simple": (25.0 + 2 * 2 * 20.9, 8 * 45 * 32 / 62),
    }
    for name, (latency_us, GBps) in expected.items():
        assert found[name].latency_s * 1e6 == pytest.approx(latency_us)
        assert found[name].bandwidth_bytes_per_s / 1e9 == pytest.approx(GBps)
    gathers = costs(sharp, Collective.ALLGATHER, MIB)
    assert set(gathers) == {"ring/LL", "ring/LL128", "ring/Simple"}


def test_what_nccl_does_not_consider() -> None:
    """NVLSTree on one node, NVLS across nodes without CollNet or before Hopper, PAT with several
    ranks a node, LL128 where it is not safe."""
    names = set(costs(H100, Collective.ALLREDUCE, MIB))
    assert not any(name.startswith(("nvlstree", "collnet", "pat")) for name in names)
    ampere = replace(H100, generation=Generation.AMPERE)
    assert "nvls/Simple" not in costs(ampere, Collective.ALLREDUCE, MIB)
    assert "pat/Simple" not in costs(A100_PODS, Collective.ALLGATHER, MIB)
    assert not any("LL128" in name for name in costs(SOCKETS, Collective.ALLREDUCE, MIB))


def test_one_rank_copies() -> None:
    alone = replace(H100, num_ranks=1)
    assert predict(alone, Collective.ALLREDUCE, MIB).chosen.time_s == 0
    assert crossovers(alone, Collective.ALLREDUCE) == []


@st.composite
def jobs(draw: st.DrawFn) -> NcclJob:
    nodes = draw(st.sampled_from([1, 2, 3, 4, 16, 1000]))
    local = draw(st.sampled_from([2, 4, 8] if nodes == 1 else [1, 2, 8]))
    nvlink = draw(st.booleans())

    def graph(nvlink: bool) -> NcclGraph:
        GBps = st.sampled_from([0.12, 3.0, 12.0, 20.0, 45.0])
        return channels(
            draw(st.integers(1, 16)),
            draw(GBps),
            draw(GBps),
            nvlink=nvlink,
            ll128=draw(st.booleans()),
            latency_us=draw(st.sampled_from([0.0, 15.0])),
        )

    return NcclJob(
        num_ranks=nodes * local,
        num_nodes=nodes,
        generation=draw(st.sampled_from(Generation)),
        ring=graph(nvlink),
        tree=graph(nvlink),
        nvls=draw(st.sampled_from([None, graph(True)])) if nvlink else None,
        collnet_direct=draw(st.sampled_from([None, graph(nvlink)])),
        collnet_chain=draw(st.sampled_from([None, graph(nvlink)])),
        plain_tree=draw(st.booleans()),
        cpu=draw(st.sampled_from(Cpu)),
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(jobs(), st.sampled_from(Collective), st.integers(0, 2**33), st.integers(1, 2**33))
def test_more_bytes_take_longer(
    job: NcclJob, collective: Collective, nbytes: int, more: int
) -> None:
    """All but trees, which NCCL's corrections by size make faster here and there."""
    after = costs(job, collective, nbytes + more)
    for name, cost in costs(job, collective, nbytes).items():
        assert cost.time_s >= cost.latency_s > 0
        if cost.algorithm not in (NcclAlgorithm.TREE, NcclAlgorithm.NVLS_TREE):
            assert after[name].time_s > cost.time_s


@settings(derandomize=True, deadline=None, max_examples=100)
@given(jobs(), st.sampled_from(Collective), st.lists(st.integers(1, 2**36), max_size=20))
def test_crossovers_are_where_the_choice_changes(
    job: NcclJob, collective: Collective, sizes: list[int]
) -> None:
    changes = crossovers(job, collective)
    for nbytes, before, after in changes:
        assert before != after
        assert chosen(job, collective, nbytes - 1) == before
        assert chosen(job, collective, nbytes) == after
    for nbytes in sizes:
        passed = [after for start, _, after in changes if start <= nbytes]
        assert chosen(job, collective, nbytes) == (passed or [chosen(job, collective, 1)])[-1]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(jobs(), st.sampled_from(Collective))
def test_small_is_for_latency_and_large_for_bandwidth(job: NcclJob, collective: Collective) -> None:
    found = predict(job, collective, 1)
    assert found.chosen.latency_s == min(cost.latency_s for cost in found.candidates)
    found = predict(job, collective, 2**50)
    most = max(cost.bandwidth_bytes_per_s for cost in found.candidates)
    assert found.chosen.bandwidth_bytes_per_s == pytest.approx(most)


def test_protocols_climb_with_the_size() -> None:
    """The usual walk: tree/LL, tree/LL128, ring/LL128, ring/Simple."""
    names = [after for _, _, after in crossovers(A100_PODS, Collective.ALLREDUCE)]
    assert chosen(A100_PODS, Collective.ALLREDUCE, 1) == "tree/LL"
    assert names[0] == "tree/LL128"
    assert names[-1] == "ring/Simple"
    assert chosen(A100_PODS, Collective.ALLGATHER, 1) == "ring/LL"
    assert chosen(A100_PODS, Collective.ALLGATHER, 2**32) == "ring/Simple"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: channels(0, 1, 1), "num_channels must be 1 to 64, not 0"),
        (lambda: channels(65, 1, 1), "num_channels must be 1 to 64, not 65"),
        (lambda: channels(1, 0, 1), "intra_GBps must be positive and finite, not 0"),
        (lambda: channels(1, 1, float("nan")), "inter_GBps must be positive and finite, not nan"),
        (lambda: channels(1, float("inf"), 1), "intra_GBps must be positive and finite"),
        (lambda: channels(1, 1, 1, latency_us=-1.0), "latency_us must be finite and >= 0, not -1"),
        (lambda: replace(H100, num_ranks=0), "num_ranks must be 1 to 65536, not 0"),
        (lambda: replace(H100, num_ranks=70_000), "num_ranks must be 1 to 65536, not 70000"),
        (
            lambda: replace(H100, num_ranks=2, num_nodes=3),
            "num_nodes must be 1 to num_ranks, not 3",
        ),
        (lambda: replace(H100, num_nodes=0), "num_nodes must be 1 to num_ranks, not 0"),
        (lambda: replace(H100, nvls=channels(8, 1, 1, nvlink=False)), "nvls must have nvlink"),
        (lambda: predict(H100, Collective.ALLREDUCE, -1), "nbytes must be 0 to"),
        (lambda: predict(H100, Collective.ALLREDUCE, 2**60), "nbytes must be 0 to"),
    ],
)
def test_nonsense_is_one_clear_line(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def hosts_of(world_size: int, per_host: int) -> list[range]:
    return [range(first, first + per_host) for first in range(0, world_size, per_host)]


def h100s(hosts: int) -> LinkGraph:
    """HGX H100: NVLink 450 GB/s for each GPU, and a NIC of 400 Gbit/s behind PCIe 5."""
    rails = range(8 if hosts > 1 else 0)
    nodes, links = [Node(f"rail{rail}", Kind.SWITCH) for rail in rails], []
    for host in range(hosts):
        nodes.append(Node(f"nvswitch{host}", Kind.SWITCH))
        for gpu in range(8):
            name = f"h{host}g{gpu}"
            nodes.append(Node(name, Kind.RANK, 8 * host + gpu))
            links += both_ways(name, f"nvswitch{host}", 450)
        for rail in rails:
            nodes.append(Node(f"h{host}n{rail}", Kind.NIC))
            links += both_ways(f"h{host}g{rail}", f"h{host}n{rail}", 63)
            links += both_ways(f"h{host}n{rail}", f"rail{rail}", 50)
    return LinkGraph(nodes, links)


def test_a_graph_of_h100s_gives_the_channels_that_nccl_found() -> None:
    """nccl#1197: ring and tree 12 channels of 30/30, NVLS 8 of 40/60."""
    job = from_graph(h100s(1), hosts_of(8, 8), Generation.HOPPER)
    assert job == H100
    job = from_graph(h100s(2), hosts_of(16, 8), Generation.HOPPER)
    assert (job.num_ranks, job.num_nodes, job.plain_tree) == (16, 2, False)
    assert job.ring == channels(8, 45, 45)
    assert job.nvls == channels(8, 40, 45)


def test_graphs_of_older_machines() -> None:
    """HGX A100: 12 channels of 20 GB/s."""
    job = from_graph(hgx(1), hosts_of(8, 8), Generation.AMPERE)
    assert job.ring == channels(12, 20, 20)
    assert job.nvls is None
    job = from_graph(hgx(2), hosts_of(16, 8), Generation.AMPERE)
    assert job.ring == channels(8, 24, 24)
    assert job.tree == channels(8, 30, 24)
    pair = direct([(0, 1, 20)])
    job = from_graph(pair, [[0, 1]], Generation.VOLTA)
    assert job.ring == channels(1, 20, 20, nvlink=False, ll128=False)


def test_one_rank_a_host_has_only_its_nic() -> None:
    job = from_graph(star([1.25] * 4), hosts_of(4, 1), Generation.BLACKWELL)
    assert job.plain_tree
    assert job.ring == channels(1, 1.2, 1.2, nvlink=False, ll128=False)
    assert job.tree == channels(1, 2.4, 1.2, nvlink=False, ll128=False)
    assert job.nvls is None
    slow = from_graph(star([0.01] * 4), hosts_of(4, 1), Generation.AMPERE)
    assert slow.ring.inter_GBps == 0.1


def test_nccl_does_not_see_behind_the_first_switch() -> None:
    job = from_graph(racks(range(8), uplink=1), hosts_of(8, 1), Generation.AMPERE, cpu=Cpu.AMD)
    assert job.ring.inter_GBps == 24
    assert job.cpu is Cpu.AMD


@pytest.mark.parametrize("islands", [[[0, 1]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3], []]])
def test_islands_must_hold_each_rank_once(islands: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="island"):
        from_graph(star([1.25] * 4), islands, Generation.AMPERE)
