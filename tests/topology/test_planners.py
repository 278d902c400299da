"""What each planner does with graphs made for it, and planners of third parties."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.topology.graphs import both_ways, direct, hgx, racks, star
from tests.topology.requests import PLAIN
from trainmesh.errors import ConfigError, GraphError
from trainmesh.topology import planner
from trainmesh.topology.cost import plan_cost
from trainmesh.topology.explain import Comparison, reason
from trainmesh.topology.graph import Kind, Link, LinkGraph, Node, host_graph
from trainmesh.topology.planner import BUILT_IN, choose, why_not
from trainmesh.topology.planners import hierarchical
from trainmesh.topology.request import NCCL, ONE_RING, Executors, PlanRequest
from trainmesh.types import Choice, Collective, LinkCost, Plan
from trainmesh.wire import decode, encode

NBYTES = 10**9


def test_paths_go_through_ranks_only_where_nothing_else_leads_there() -> None:
    line = direct([(0, 1, 1), (1, 2, 1)])
    assert [link.name for link in line.path(0, 2)] == ["g0->g1", "g1->g2"]
    nodes = [*line.nodes, Node("slow", Kind.SWITCH)]
    links = [*line.links, *both_ways("g0", "slow", 0.001), *both_ways("slow", "g2", 0.001)]
    assert [link.name for link in LinkGraph(nodes, links).path(0, 2)] == ["g0->slow", "slow->g2"]


@pytest.mark.parametrize(
    ("name", "bandwidth", "alpha_s", "words"),
    [
        ("a->b", 1.0, 0.0, "printable"),
        ("", 1.0, 0.0, "printable"),
        ("a\n", 1.0, 0.0, "printable"),
        ("a", float("nan"), 0.0, "bandwidth must be positive"),
        ("a", 0.0, 0.0, "bandwidth must be positive"),
        ("a", 1.0, -1.0, "alpha must be non-negative"),
        ("a", 1.0, float("inf"), "alpha must be non-negative"),
    ],
)
def test_a_graph_made_in_code_is_checked_too(
    name: str, bandwidth: float, alpha_s: float, words: str
) -> None:
    cost = LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=bandwidth)
    nodes = [Node(name, Kind.RANK, 0), Node("other", Kind.RANK, 1)]
    with pytest.raises(GraphError, match=words):
        LinkGraph(nodes, [Link(name, "other", cost), Link("other", name, cost)])


def test_islands_are_those_of_the_fastest_switch() -> None:
    """By name the rail switches come first; the NVSwitch is what the GPUs are near to."""
    assert hierarchical.islands(hgx(2))[0] == (tuple(range(8)), tuple(range(8, 16)))


def test_islands_of_two_do_not_read_as_ranges() -> None:
    plan = Plan(
        algorithm="hierarchical", world_size=4, order=(0, 2, 1, 3), islands=((0, 2), (1, 3))
    )
    how = Comparison(0.05, None, "", True, 1)
    told = reason(plan, how, chosen=True, step_s=1.0, native_s=2.0)
    assert "(0,2 | 1,3)" in told


def test_islands_are_found_without_switches() -> None:
    fast = [(0, 1, 50), (2, 3, 50), (4, 5, 50)]
    graph = direct([*fast, (1, 2, 5), (3, 4, 5), (5, 0, 5)])
    assert ((0, 1), (2, 3), (4, 5)) in hierarchical.islands(graph)


def test_the_ring_across_follows_the_fabric() -> None:
    """Four racks in two pods, racks of the pods interleaved: the pods are crossed once."""
    nodes = [Node("core", Kind.SWITCH)]
    links = []
    for pod in range(2):
        nodes.append(Node(f"pod{pod}", Kind.SWITCH))
        links += both_ways(f"pod{pod}", "core", 5)
    for rack in range(4):
        nodes.append(Node(f"leaf{rack}", Kind.SWITCH))
        links += both_ways(f"leaf{rack}", f"pod{rack % 2}", 5)
        for rank in (2 * rack, 2 * rack + 1):
            nodes.append(Node(f"g{rank}", Kind.RANK, rank))
            links += both_ways(f"g{rank}", f"leaf{rack}", 25)
    plan = hierarchical.plan(LinkGraph(nodes, links), PlanRequest(NBYTES, executors=PLAIN))
    assert plan is not None
    order = [island[0] // 2 % 2 for island in plan.islands]
    assert order in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1])


def test_cost_of_unequal_islands_by_hand() -> None:
    """Islands of 3 and 1 ranks around one switch at 1 GB/s, 1 GB, in one chunk: two hops of a
    chain to the leader 2 s, a ring of two leaders 1 s, two hops back 2 s."""
    plan = Plan(
        algorithm="hierarchical", world_size=4, order=(0, 1, 2, 3), islands=((0, 1, 2), (3,))
    )
    graph = star([1, 1, 1, 1], alpha_us=1)
    cost = plan_cost(plan, graph)
    assert cost.predict(NBYTES).time_s - cost.latency_s == pytest.approx(5)
    assert cost.latency_s == pytest.approx((1 + 1 + 2 + 1 + 1) * 2e-6)


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="native, ring, tree, hierarchical"):
        choose(star([1, 1]), [NBYTES], only="magic")


def test_the_choice_for_a_large_cluster_fits_a_value_of_the_store() -> None:
    graph = host_graph({f"node{i:03d}.cluster": range(8 * i, 8 * i + 8) for i in range(64)})
    choice = choose(graph, [25_000_000] * 4)
    assert decode(encode(choice), Choice, what="choice") == choice


MODULE = """
from msgspec.structs import replace
from trainmesh.topology.planners import native

def good(graph, request):
    return replace(native.plan(graph, request), algorithm="good", predicted_s=1.0)

def raises(graph, request):
    raise KeyError("no such thing")

def malformed(graph, request):
    return replace(good(graph, request), algorithm="malformed", order=(0, 0, 1))

def too_good(graph, request):
    return replace(native.plan(graph, request), algorithm="too_good", predicted_s=1e-9)

def native_again(graph, request):
    return native.plan(graph, request)

def nothing(graph, request):
    return None
"""


@pytest.fixture
def guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution with planners of every kind."""
    names = ("good", "raises", "malformed", "too_good", "native_again", "nothing", "missing")
    (tmp_path / "guest_planners.py").write_text(MODULE)
    info = tmp_path / "guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    lines = [f"{name} = guest_planners:{name}" for name in names]
    lines.append("ring = guest_planners:good")
    (info / "entry_points.txt").write_text("\n".join(["[trainmesh.planners]", *lines]) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    planner._registered.cache_clear()
    yield
    planner._registered.cache_clear()


@pytest.mark.usefixtures("guests")
def test_planners_of_third_parties_are_candidates_or_are_left_out_with_a_warning() -> None:
    graph = star([10] * 3)
    choice = choose(graph, [NBYTES], only="good")
    assert choice.chosen == "good"
    assert {plan.algorithm for plan in choice.candidates} == {*BUILT_IN} - {"hierarchical"} | {
        "good"
    }
    words = "\n".join(choice.explain)
    for part in (
        "planner 'raises' is left out: KeyError",
        "planner 'malformed' is left out: PlanError",
        "planner 'too_good' is left out: PlanError",
        "its plan is called",
        "planner 'missing' of guest can't be loaded",
        "planner 'ring' of guest is ignored: the name is taken",
    ):
        assert part in words
    assert choose(graph, [NBYTES]).chosen == "native"


def test_without_guests_there_are_the_built_in_planners() -> None:
    assert set(planner.planners()) >= {"native", "ring", "hierarchical"}
    graph = racks([0, 2, 4, 6, 1, 3, 5, 7], uplink=10)
    algorithms = [plan.algorithm for plan in choose(graph, [NBYTES]).candidates]
    assert sorted(algorithms) == sorted(BUILT_IN)


@pytest.mark.parametrize(
    ("algorithm", "graph", "collective", "words"),
    [
        ("ring", star([1, 1]), "allreduce", "3 ranks or more, not 2"),
        ("sharded", star([1, 1]), "allreduce", "for 3 to 64 ranks, not for 2"),
        ("sharded", star([1] * 65), "allreduce", "for 3 to 64 ranks, not for 65"),
        ("sharded", star([1, 1, 1]), "allgather", "for allreduce only"),
        ("tree", star([1, 1, 1]), "reduce_scatter", "for allreduce only"),
        ("tree", racks([0, 2, 1, 3], uplink=1, per_rack=2), "allgather", "for allreduce only"),
        ("tree", star([1]), "allreduce", "nobody to send to"),
        ("forest", star([1]), "allreduce", "nobody to send to"),
        ("forest", star([1] * 65), "allreduce", "up to 64 ranks"),
        ("hierarchical", star([1, 1, 1, 1]), "allreduce", "into no islands"),
        ("hierarchical", host_graph({"one": [0, 1, 2, 3]}), "allreduce", "into no islands"),
        ("hierarchical", host_graph({"a": [0], "b": [1]}), "allreduce", "into no islands"),
        ("hierarchical", host_graph({"a": [0, 1], "b": [2]}), "allgather", "no equal islands"),
        ("magic", star([1, 1, 1]), "allreduce", "unknown"),
    ],
)
def test_why_an_algorithm_can_t_be_had(
    algorithm: str, graph: LinkGraph, collective: str, words: str
) -> None:
    """The planner leaves out just what is refused, and native stays with that reason, even where
    (two racks) something else would be faster."""
    request = PlanRequest(NBYTES, Collective(collective))
    refusal = why_not(algorithm, graph, request)
    assert refusal is not None
    assert words in refusal
    if algorithm == "magic":
        return
    choice = choose(graph, [NBYTES], collective=request.collective, only=algorithm)
    assert algorithm not in {plan.algorithm for plan in choice.candidates}
    assert choice.chosen == "native"
    [native] = [plan for plan in choice.candidates if plan.algorithm == "native"]
    assert native.reason == f"{algorithm} was asked for and can't run here: {refusal}"


@pytest.mark.parametrize("algorithm", sorted(BUILT_IN))
def test_what_is_not_refused_is_planned(algorithm: str) -> None:
    graph = racks(range(4), uplink=1, per_rack=2)
    assert why_not(algorithm, graph, PlanRequest(NBYTES)) is None
    assert choose(graph, [NBYTES], only=algorithm).chosen == algorithm


@pytest.mark.parametrize("executors", [NCCL, ONE_RING])
def test_on_nccl_no_plan_is_compared_with_native(executors: Executors) -> None:
    """Native is predicted as one ring in rank order, which NCCL does not run."""
    graph = racks([0, 2, 1, 3], uplink=1, per_rack=2)
    told = choose(graph, [NBYTES], executors=executors)
    assert told.chosen == "ring" or executors is NCCL
    assert "as native" not in " ".join([*told.explain, *(p.reason for p in told.candidates)])
    assert all("native" not in (change.before, change.after) for change in told.crossovers)
    assert "as native" in " ".join(plan.reason for plan in choose(graph, [NBYTES]).candidates)


def test_one_of_a_thing_is_not_called_many() -> None:
    two = host_graph({"a": [0], "b": [1]})
    told = choose(two, [NBYTES], only="tree")
    [tree] = [plan for plan in told.candidates if plan.algorithm == "tree"]
    one = replace(tree, trees=tree.trees[:1])
    how = Comparison(0.05, None, "", native_is_ring=True, num_buckets=1)
    said = reason(one, how, chosen=True, step_s=0.010, native_s=0.020)
    root = one.trees[0].root
    assert said.startswith(
        f"tree rooted at rank {root} is predicted 2.00x as fast as native (10.0 ms, not 20.0 ms, "
        "for a bucket)"
    )
    assert not any("which carry" in text and "together" in text for text in told.explain)


def test_a_gain_is_the_quotient_of_what_is_printed_beside_it() -> None:
    """It is that of all buckets of a step, not of the largest one in the table."""
    told = choose(racks([0, 2, 1, 3], uplink=1, nic=1, per_rack=2), [1_000_000, 300_000, 7_000])
    pattern = r"predicted ([0-9.]+)x as fast as native \(([0-9.]+) (\w+), not ([0-9.]+) (\w+), "
    unit_s = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    found = [re.search(pattern, plan.reason) for plan in told.candidates[:-1]]
    gains = [match for match in found if match is not None]
    assert gains
    for match in gains:
        ratio, new, unit, old, other = match.groups()
        assert ratio == f"{float(old) * unit_s[other] / (float(new) * unit_s[unit]):.2f}"
        assert "for a step's 3 buckets" in match.string
