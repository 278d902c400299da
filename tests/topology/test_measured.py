"""Measured pairs become costs of links: no further than they force, and deterministically."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.probe_types import CostFit, PairMeasure, RoundTrips
from trainmesh.topology.document import dump, load
from trainmesh.topology.graph import LinkGraph, Provenance, host_graph
from trainmesh.topology.measure.measured import (
    Between,
    expected,
    not_tcp,
    with_measures,
    with_pair_times,
)
from trainmesh.topology.measure.probing import rounds
from trainmesh.types import LinkCost, PairTime
from trainmesh.wire import encode

HOSTS = {"a": [0, 1], "b": [2, 3], "c": [4, 5]}

RACKS = """
version: 1
nodes:
  a0: {kind: rank}
  a1: {kind: rank}
  b0: {kind: rank}
  b1: {kind: rank}
  left: {kind: switch}
  right: {kind: switch}
links:
- {src: a0, dst: left, bandwidth_GBps: 1, alpha_us: 10}
- {src: a1, dst: left, bandwidth_GBps: 1, alpha_us: 10}
- {src: b0, dst: right, bandwidth_GBps: 1, alpha_us: 10}
- {src: b1, dst: right, bandwidth_GBps: 1, alpha_us: 10}
- {src: left, dst: right, bandwidth_GBps: 1, alpha_us: 10, class: wan}
"""
EACH = {"a0": [0], "a1": [1], "b0": [2], "b1": [3]}


def fit(alpha_s: float, bandwidth: float, *, spread: float = 0.0) -> CostFit:
    return CostFit(
        cost=LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=bandwidth),
        alpha_low_s=alpha_s,
        alpha_high_s=alpha_s,
        bandwidth_low_bytes_per_s=bandwidth * (1 - spread),
        bandwidth_high_bytes_per_s=bandwidth * (1 + spread),
        num_samples=10,
        residual=0.0,
    )


def measure(
    src: str,
    dst: str,
    there: tuple[float, float] | None,
    back: tuple[float, float] | None,
    *,
    ceiling: float = 0.0,
    spread: float = 0.0,
) -> PairMeasure:
    return PairMeasure(
        src=src,
        dst=dst,
        unix_s=0.0,
        round_trips=RoundTrips(sent=1, received=1),
        forward=fit(*there, spread=spread) if there else None,
        backward=fit(*back, spread=spread) if back else None,
        ceiling_bytes_per_s=ceiling,
    )


def probed(
    alphas: dict[str, tuple[float, float]], speeds: dict[str, tuple[float, float]]
) -> list[list[PairMeasure]]:
    """What is measured around a core switch: (up, down) alphas and bandwidths of each node."""
    return [
        [
            measure(
                src,
                dst,
                (alphas[src][0] + alphas[dst][1], min(speeds[src][0], speeds[dst][1])),
                (alphas[dst][0] + alphas[src][1], min(speeds[dst][0], speeds[src][1])),
            )
            for src, dst in pairs
        ]
        for pairs in rounds(sorted(alphas))
    ]


ALPHAS = {"a": (1e-3, 1e-3), "b": (1e-5, 1e-5), "c": (2e-5, 2e-5)}
SPEEDS = {"a": (1e7, 2e7), "b": (1e9, 1e9), "c": (1e9, 1e9)}


def test_around_one_switch_every_access_link_is_found() -> None:
    after = with_measures(host_graph(HOSTS), HOSTS, probed(ALPHAS, SPEEDS))
    for node in HOSTS:
        up, down = after.link(f"{node}->core switch"), after.link(f"core switch->{node}")
        assert up.provenance is down.provenance is Provenance.MEASURED
        assert up.cost.bandwidth_bytes_per_s == SPEEDS[node][0]
        assert down.cost.bandwidth_bytes_per_s == SPEEDS[node][1]
        # an iteration that comes near in few steps and exact in many
        assert up.cost.alpha_s == pytest.approx(ALPHAS[node][0], rel=0.05)
        assert down.cost.alpha_s == pytest.approx(ALPHAS[node][1], rel=0.05)
    assert after.version == 2


def test_links_inside_a_node_stay_as_they_are() -> None:
    before = host_graph({"a": [0, 1], "b": [2]})
    turns = [[measure("a", "b", (1e-3, 1e6), (1e-3, 1e6))]]
    after = with_measures(before, {"a": [0, 1], "b": [2]}, turns)
    inside = [link for link in before.links if link.link_class == "loopback"]
    assert len(inside) == 6
    assert inside == [link for link in after.links if link.link_class == "loopback"]


def test_a_link_that_pairs_of_a_round_share_is_not_taken_for_slow() -> None:
    """Two cross pairs at a time share the uplink: each sees half of it."""
    graph = load(RACKS, source="racks")
    half = (30e-6, 0.5e9)
    turns = [
        [
            measure(src, dst, half, half)
            if {src[0], dst[0]} == {"a", "b"}
            else measure(src, dst, (20e-6, 1e9), (20e-6, 1e9))
            for src, dst in pairs
        ]
        for pairs in rounds(list(EACH))
    ]
    after = with_measures(graph, EACH, turns)
    for link in after.links:
        assert link.cost.bandwidth_bytes_per_s == 1e9, link
        assert link.cost.alpha_s == pytest.approx(10e-6, rel=1e-3)


def test_a_slow_uplink_is_found_from_what_the_pairs_get_together() -> None:
    graph = load(RACKS, source="racks")
    share = (30e-6, 0.05e9)
    turns = [
        [
            measure(src, dst, share, share)
            if {src[0], dst[0]} == {"a", "b"}
            else measure(src, dst, (20e-6, 1e9), (20e-6, 1e9))
            for src, dst in pairs
        ]
        for pairs in rounds(list(EACH))
    ]
    after = with_measures(graph, EACH, turns)
    assert after.link("left->right").cost.bandwidth_bytes_per_s == pytest.approx(0.1e9)
    assert after.link("a0->left").cost.bandwidth_bytes_per_s == 1e9


def test_what_the_agents_could_not_move_is_no_fault_of_the_link() -> None:
    graph = load(RACKS, source="racks")
    limited = measure("a0", "b0", (30e-6, 0.6e9), (30e-6, 0.2e9), ceiling=1e9)
    after = with_measures(graph, EACH, [[limited]])
    assert after.link("a0->left").cost.bandwidth_bytes_per_s == 1e9
    assert after.link("b0->right").cost.bandwidth_bytes_per_s == 0.2e9


@pytest.mark.parametrize(("spread", "there", "back"), [(0.1, 0.8e9, 1.2e9), (0.3, 1e9, 1e9)])
def test_noise_alone_changes_no_bandwidth(spread: float, there: float, back: float) -> None:
    graph = load(RACKS, source="racks")
    noisy = measure("a0", "b0", (30e-6, 0.8e9), (30e-6, 1.2e9), spread=spread)
    after = with_measures(graph, EACH, [[noisy]])
    assert after.link("a0->left").cost.bandwidth_bytes_per_s == there
    assert after.link("b0->right").cost.bandwidth_bytes_per_s == back


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
def test_what_does_not_go_over_tcp(backend: str) -> None:
    assert {"infiniband", "roce", "nvlink", "xgmi"} <= {*not_tcp(backend)}
    assert not_tcp("gloo") == ()


def test_classes_that_tcp_says_nothing_about_are_left_alone() -> None:
    graph = load(RACKS, source="racks")
    turns = [
        [measure("a0", "b0", (1e-3, 1e6), (1e-3, 1e6))],
        [measure("a0", "a1", (1e-3, 2e6), (1e-3, 2e6))],
    ]
    after = with_measures(graph, EACH, turns, except_classes=["wan"])
    assert after.link("left->right") == graph.link("left->right")
    assert after.link("right->b0") == graph.link("right->b0")
    assert after.link("a0->left").cost.bandwidth_bytes_per_s == 2e6


def test_pairs_without_a_fit_and_unknown_nodes_change_nothing() -> None:
    graph = load(RACKS, source="racks")
    turns = [[measure("a0", "b0", None, None), measure("x", "a1", (1.0, 1.0), (1.0, 1.0))]]
    after = with_measures(graph, EACH, turns)
    assert after.links == graph.links
    assert after.version == graph.version + 1


def test_what_the_graph_says_about_a_pair_is_its_path_outside_of_the_nodes() -> None:
    between = Between(host_graph(HOSTS), HOSTS)
    path = between.path("a", "b")
    assert [link.name for link in path] == ["a->core switch", "core switch->b"]
    assert expected(path) == LinkCost(alpha_s=200e-6, bandwidth_bytes_per_s=1.25e9)
    assert between.path("a", "elsewhere") == ()
    assert expected(()) is None


positive = st.floats(1e-6, 1e-2)
speed = st.floats(1e6, 1e10)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(positive, speed, positive, speed), min_size=6, max_size=6))
def test_whatever_is_measured_the_result_is_a_graph_that_no_pair_contradicts(
    ways: list[tuple[float, float, float, float]],
) -> None:
    graph = load(RACKS, source="racks")
    pairs = iter(ways)
    turns = [
        [measure(src, dst, *_split(next(pairs))) for src, dst in turn]
        for turn in rounds(list(EACH))
    ]
    after = with_measures(graph, EACH, turns)
    between = Between(after, EACH)
    for turn in turns:
        for pair in turn:
            assert pair.forward is not None
            shown = expected(between.path(pair.src, pair.dst))
            assert shown is not None
            # never slower than what a pair has really got
            assert shown.bandwidth_bytes_per_s >= pair.forward.cost.bandwidth_bytes_per_s
            assert math.isfinite(shown.alpha_s)
    assert with_measures(graph, EACH, turns).digest == after.digest
    read: LinkGraph = load(encode(dump(after)).decode(), source="again")
    assert read.digest == after.digest


def _split(
    way: tuple[float, float, float, float],
) -> tuple[tuple[float, float], tuple[float, float]]:
    return way[:2], way[2:]


def pair_times(graph: LinkGraph, nodes: dict[str, list[int]]) -> list[PairTime]:
    """What one rank of each node measures on ``graph``."""
    pairs = []
    for turn, together in enumerate(rounds(sorted(nodes))):
        for a, b in together:
            for src, dst in ((nodes[a][0], nodes[b][0]), (nodes[b][0], nodes[a][0])):
                path = graph.path(src, dst)
                slowest = min(link.cost.bandwidth_bytes_per_s for link in path)
                alpha_s = sum(link.cost.alpha_s for link in path)
                pairs.append(PairTime(1, turn, src, dst, 10**6, alpha_s + 1e6 / slowest, alpha_s))
    return pairs


def slowed(graph: LinkGraph, name: str, share: float) -> LinkGraph:
    links = [
        replace(
            link,
            cost=LinkCost(
                alpha_s=link.cost.alpha_s,
                bandwidth_bytes_per_s=share * link.cost.bandwidth_bytes_per_s,
            ),
        )
        if link.name == name
        else link
        for link in graph.links
    ]
    return LinkGraph(graph.nodes, links)


@pytest.mark.parametrize("name", ["a0->left", "left->a0", "right->b1"])
def test_ranks_find_the_slow_link_and_leave_the_others_alone(name: str) -> None:
    graph = load(RACKS, source="racks")
    true = slowed(graph, name, 0.25)
    after = with_pair_times(graph, EACH, pair_times(true, EACH))
    for link in after.links:
        wanted = true.link(link.name).cost.bandwidth_bytes_per_s
        assert link.cost.bandwidth_bytes_per_s == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("share", "is_new"), [(0.9, False), (0.8, True), (1.1, False), (1.3, True)]
)
def test_one_message_must_be_well_off_to_count(share: float, is_new: bool) -> None:
    graph = load(RACKS, source="racks")
    pairs = pair_times(slowed(graph, "a0->left", share), EACH)
    before = graph.link("a0->left").cost.bandwidth_bytes_per_s
    after = with_pair_times(graph, EACH, pairs).link("a0->left").cost.bandwidth_bytes_per_s
    assert (after != before) is (is_new and share < 1)  # others limit a faster one


def test_ranks_of_one_node_measure_the_links_inside() -> None:
    graph = host_graph({"a": [0, 1, 2]})
    nodes = {"x": [0], "y": [1], "z": [2]}
    pairs = pair_times(slowed(graph, "a/rank1->a", 0.1), nodes)
    after = with_pair_times(graph, {"a": [0, 1, 2]}, pairs)
    assert after.link("a/rank1->a").cost.bandwidth_bytes_per_s == pytest.approx(2e8)
    assert after.link("a/rank2->a").cost.bandwidth_bytes_per_s == pytest.approx(2e9)


def test_a_pair_without_a_time_says_nothing() -> None:
    graph = load(RACKS, source="racks")
    after = with_pair_times(graph, EACH, [PairTime(1, 0, 0, 1, 10**6, 0.0, 0.0)])
    assert after.links == graph.links
