"""Bounds and plans against the optimum, which oracles.py finds in another way."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from tests.topology import oracles
from tests.topology.graphs import GB, random_graphs
from tests.topology.systems import TABLE, System, build, hypercube
from trainmesh.topology.answer import PlanAnswer, answer
from trainmesh.topology.bounds import bound
from trainmesh.topology.cost import predict
from trainmesh.topology.graph import Kind, Link, LinkGraph, Node
from trainmesh.topology.planners.ring import best_order
from trainmesh.types import Collective, LinkCost, Plan

NBYTES = 10**9
NEAR = 1e-6  # relative
ONE_WAY: dict[Collective, Callable[[LinkGraph], float]] = {
    Collective.ALLGATHER: oracles.all_gather,
    Collective.REDUCE_SCATTER: oracles.reduce_scatter,
}
thorough = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


def one_way(*links: tuple[str, str, float]) -> LinkGraph:
    """Directed links in GB/s; names that begin with g are ranks."""
    names = sorted({name for link in links for name in link[:2]})
    ranks = [name for name in names if name.startswith("g")]
    nodes = [Node(name, Kind.RANK, rank) for rank, name in enumerate(ranks)]
    nodes += [Node(name, Kind.SWITCH) for name in names if name not in ranks]
    return LinkGraph(
        nodes,
        [Link(a, b, LinkCost(alpha_s=0, bandwidth_bytes_per_s=w * GB)) for a, b, w in links],
    )


def without_alpha(graph: LinkGraph) -> LinkGraph:
    """Plans are then as fast as their busiest link."""
    free = [
        Link(
            link.src,
            link.dst,
            LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=link.cost.bandwidth_bytes_per_s),
        )
        for link in graph.links
    ]
    return LinkGraph(graph.nodes, free)


def limit(graph: LinkGraph, collective: Collective) -> float:
    return NBYTES / bound(graph, NBYTES, collective).time_s


def forest_algbw(found: PlanAnswer) -> float:
    """0 if there is none."""
    plans = [plan for plan in found.choice.candidates if plan.algorithm == "forest"]
    return plans[0].algbw_bytes_per_s if plans else 0.0


def ring_algbw(graph: LinkGraph) -> float:
    ring = Plan(algorithm="ring", world_size=graph.world_size, order=best_order(graph))
    return NBYTES / predict(ring, graph, NBYTES)


@pytest.mark.parametrize("system", TABLE, ids=lambda system: system["name"])
def test_reference_systems(system: System) -> None:
    """The table's figures are not only what the planner says."""
    graph = build(system)
    gather, scatter = oracles.all_gather(graph), oracles.reduce_scatter(graph)
    reduce = oracles.all_reduce(graph)
    assert limit(graph, Collective.ALLGATHER) == pytest.approx(gather, rel=NEAR)
    assert limit(graph, Collective.REDUCE_SCATTER) == pytest.approx(scatter, rel=NEAR)
    assert limit(graph, Collective.ALLREDUCE) == pytest.approx(reduce, rel=NEAR)
    assert ring_algbw(graph) <= gather / 2 * (1 + 1e-9)
    assert gather / 2 <= reduce * (1 + 1e-9)


@pytest.mark.slow
@thorough
@given(random_graphs(max_ranks=5))
def test_all_reduce(graph: LinkGraph) -> None:
    graph = without_alpha(graph)
    best = oracles.all_reduce(graph)
    found = answer(graph, Collective.ALLREDUCE, NBYTES)
    assert found.bound.exact
    assert NBYTES / found.bound.time_s == pytest.approx(best, rel=NEAR)
    assert best <= oracles.all_reduce_over_cuts(graph) * (1 + 1e-6)
    for plan in found.choice.candidates:
        assert plan.algbw_bytes_per_s <= best * (1 + 1e-6)
    assert forest_algbw(found) >= 0.98 * best


@pytest.mark.slow
@pytest.mark.parametrize("collective", ONE_WAY)
@thorough
@given(random_graphs(max_ranks=5))
def test_gathers_and_scatters(collective: Collective, graph: LinkGraph) -> None:
    graph = without_alpha(graph)
    best = ONE_WAY[collective](graph)
    found = answer(graph, collective, NBYTES)
    algbw = NBYTES / found.bound.time_s
    if collective == Collective.ALLGATHER:
        assert algbw == pytest.approx(oracles.all_gather_over_cuts(graph), rel=1e-9)
    assert algbw >= best * (1 - 1e-6)
    if found.bound.exact:
        assert algbw == pytest.approx(best, rel=NEAR)
    for plan in found.choice.candidates:
        assert plan.algbw_bytes_per_s <= best * (1 + 1e-6)
    assert forest_algbw(found) >= 0.999 * best


@pytest.mark.slow
@thorough
@given(random_graphs(max_ranks=6))
def test_a_ring_is_a_scatter_and_a_gather_and_these_are_an_all_reduce(graph: LinkGraph) -> None:
    graph = without_alpha(graph)
    in_turn = 1 / (1 / oracles.reduce_scatter(graph) + 1 / oracles.all_gather(graph))
    assert ring_algbw(graph) <= in_turn * (1 + 1e-6)
    assert in_turn <= limit(graph, Collective.ALLREDUCE) * (1 + 1e-6)


def test_two_sets_behind_the_same_links() -> None:
    """The link to the switch must hold two ranks' trees, as its sender and the rank before that
    are both on one side; the set of all ranks but the sender asks for one only."""
    graph = one_way(
        ("g1", "g0", 1), ("g0", "s", 1), ("s", "g2", 1), ("g2", "s", 1), ("g2", "g1", 1)
    )
    assert oracles.all_gather(graph) == pytest.approx(1.5 * GB)
    found = answer(graph, Collective.ALLGATHER, NBYTES)
    assert forest_algbw(found) == pytest.approx(1.5 * GB)


def test_a_bound_that_nothing_reaches_is_not_called_exact() -> None:
    """Everything that b, c and d get leaves a one by one, as the switch does not copy: 9 shards,
    where the cut sees 3."""
    out = [("ga", "s", 1.0)] + [("s", name, 1.0) for name in ("gb", "gc", "gd")]
    graph = one_way(*out, *((name, "ga", 1.0) for name in ("gb", "gc", "gd")))
    assert oracles.all_gather(graph) == pytest.approx(4 / 9 * GB)
    found = answer(graph, Collective.ALLGATHER, NBYTES)
    assert NBYTES / found.bound.time_s == pytest.approx(4 / 3 * GB)
    assert not found.bound.exact
    assert found.document()["bound"]["slack_at_most"] == pytest.approx(2.0, rel=0.01)


@pytest.mark.slow
@settings(thorough, max_examples=3)
@given(random_graphs(min_ranks=12, max_ranks=24))
def test_up_to_24_ranks(graph: LinkGraph) -> None:
    graph = without_alpha(graph)
    found = {collective: answer(graph, collective, NBYTES) for collective in Collective}
    for collective, plans in found.items():
        for plan in plans.choice.candidates:
            assert 0 < plan.efficiency <= 1 + 1e-9
        if collective == Collective.ALLREDUCE:
            assert plans.bound.exact
            assert forest_algbw(plans) >= 0.98 * NBYTES / plans.bound.time_s
        elif plans.bound.exact:
            assert forest_algbw(plans) >= 0.999 * NBYTES / plans.bound.time_s
    in_turn = 1 / sum(1 / forest_algbw(found[collective]) for collective in ONE_WAY)
    assert ring_algbw(graph) <= in_turn * 1.002
    assert in_turn <= NBYTES / found[Collective.ALLREDUCE].bound.time_s * (1 + 1e-6)


def test_a_ring_leaves_the_way_back_to_another_ring() -> None:
    """On a cube a ring over 8 of the 24 links and its reverse use 16; one that is as fast by itself
    but goes over ranks in between would leave no room for a second one."""
    graph = hypercube()
    found = answer(graph, Collective.ALLREDUCE, NBYTES)
    [ring] = [plan for plan in found.choice.candidates if plan.algorithm == "ring"]
    assert ring.efficiency == pytest.approx(2 / 3)
