"""What must hold on any graph, checked on random ones and against brute force."""

from itertools import permutations
from random import Random

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.topology.graphs import GB, both_ways, racks, random_graphs
from tests.topology.requests import PLAIN
from trainmesh.errors import PlanError
from trainmesh.topology.bounds import bound
from trainmesh.topology.cost import plan_cost
from trainmesh.topology.graph import LinkGraph, Node
from trainmesh.topology.planner import choose
from trainmesh.topology.planners import ring
from trainmesh.topology.request import PlanRequest
from trainmesh.topology.validate import validate
from trainmesh.types import Collective, Plan

NBYTES = 10**8
thorough = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


@thorough
@given(random_graphs(max_ranks=12))
def test_no_max_flow_that_is_skipped_would_have_changed_the_bound(graph: LinkGraph) -> None:
    digraph, first = graph.digraph(), graph.rank_node(0)
    others = [graph.rank_node(rank) for rank in range(1, graph.world_size)]
    least = min(
        nx.minimum_cut_value(digraph, *ends)
        for other in others
        for ends in ((first, other), (other, first))
    )
    found = bound(graph, NBYTES)
    if found.kind == "cut":
        assert found.time_s == pytest.approx(NBYTES / least)
        leaving = sum(graph.link(name).cost.bandwidth_bytes_per_s for name in found.links)
        assert leaving == pytest.approx(least)
    else:
        assert found.time_s >= NBYTES / least


@thorough
@given(st.permutations(range(12)), st.sampled_from([5.0, 25.0, 100.0]))
def test_any_numbering_of_racks_gets_a_ring_that_crosses_each_uplink_once(
    order: list[int], uplink: float
) -> None:
    graph = racks(order, uplink=uplink)
    plan = ring.plan(graph, PlanRequest(NBYTES, executors=PLAIN))
    assert plan is not None
    [stage] = plan_cost(plan, graph).stages
    assert stage.transfer_s(1) == pytest.approx(2 * 11 / 12 / (min(uplink, 25) * GB))


@thorough
@given(random_graphs(max_ranks=6))
def test_ring_order_is_the_best_of_all(graph: LinkGraph) -> None:
    plan = ring.plan(graph, PlanRequest(NBYTES, executors=PLAIN))
    if plan is None:
        return
    [stage] = plan_cost(plan, graph).stages
    for rest in permutations(range(1, graph.world_size)):
        [other] = plan_cost(replace(plan, order=(0, *rest)), graph).stages
        assert stage.transfer_s(NBYTES) <= other.transfer_s(NBYTES) * (1 + 1e-9)


@thorough
@given(random_graphs(max_ranks=10))
def test_every_candidate_is_proven_and_never_beats_the_bound(graph: LinkGraph) -> None:
    choice = choose(graph, [NBYTES, 1000])
    for plan in choice.candidates:
        validate(plan, graph.world_size)
        assert 0 < plan.efficiency <= 1 + 1e-9
    assert choice.chosen in {plan.algorithm for plan in choice.candidates}
    assert choice == choose(graph, [NBYTES, 1000])


@thorough
@given(random_graphs(max_ranks=6), st.randoms(use_true_random=False))
def test_numbering_the_ranks_otherwise_changes_no_bound_and_no_best_ring(
    graph: LinkGraph, draw: Random
) -> None:
    numbers = list(range(graph.world_size))
    draw.shuffle(numbers)
    nodes = [Node(n.name, n.kind, None if n.rank is None else numbers[n.rank]) for n in graph.nodes]
    other = LinkGraph(nodes, graph.links)
    for collective in Collective:
        expected = bound(graph, NBYTES, collective).time_s
        assert bound(other, NBYTES, collective).time_s == pytest.approx(expected)
    first, second = (
        ring.plan(graph, PlanRequest(NBYTES, executors=PLAIN)),
        ring.plan(other, PlanRequest(NBYTES, executors=PLAIN)),
    )
    if first is not None and second is not None:
        transfer = [
            plan_cost(plan, g).stages[0].transfer_s(NBYTES)
            for plan, g in ((first, graph), (second, other))
        ]
        assert transfer[0] == pytest.approx(transfer[1])


@thorough
@given(random_graphs(max_ranks=5), st.sampled_from(Collective), st.data())
def test_one_link_more_never_makes_the_bound_worse(
    graph: LinkGraph, collective: Collective, data: st.DataObject
) -> None:
    names = [node.name for node in graph.nodes]
    have = {(link.src, link.dst) for link in graph.links}
    missing = [(a, b) for a in names for b in names if a < b and (a, b) not in have]
    if not missing:
        return
    a, b = data.draw(st.sampled_from(missing))
    more = LinkGraph(graph.nodes, [*graph.links, *both_ways(a, b, 5)])
    before = bound(graph, NBYTES, collective).time_s
    assert bound(more, NBYTES, collective).time_s <= before * (1 + 1e-9)


@thorough
@given(random_graphs(max_ranks=5), st.sampled_from(Collective), st.sampled_from([0.5, 3.0]))
def test_the_bound_scales_with_the_links(
    graph: LinkGraph, collective: Collective, factor: float
) -> None:
    links = [
        type(link)(
            link.src,
            link.dst,
            replace(link.cost, bandwidth_bytes_per_s=link.cost.bandwidth_bytes_per_s * factor),
        )
        for link in graph.links
    ]
    faster = LinkGraph(graph.nodes, links)
    expected = bound(graph, NBYTES, collective).time_s / factor
    assert bound(faster, NBYTES, collective).time_s == pytest.approx(expected)


def plan(algorithm: str, order: tuple[int, ...], *islands: tuple[int, ...]) -> Plan:
    return Plan(algorithm=algorithm, world_size=len(order), order=order, islands=islands)


@pytest.mark.parametrize("world_size", [*range(1, 10), 16, 24, 64])
def test_built_in_schedules_are_all_reduces_at_any_size(world_size: int) -> None:
    order = tuple(range(world_size))
    validate(plan("native", order), world_size)
    validate(plan("ring", order[::-1]), world_size)
    for size in range(1, world_size + 1):
        islands = [order[i : i + size] for i in range(0, world_size, size)]
        validate(plan("hierarchical", order, *islands), world_size)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (plan("ring", (0, 1)), "2 ranks"),
        (plan("ring", (0, 1, 1)), "permutation"),
        (plan("ring", (0, 1, 3)), "permutation"),
        (plan("native", (0, 2, 1)), "rank order"),
        (plan("hierarchical", (0, 1, 2)), "islands"),
        (plan("hierarchical", (0, 1, 2), (0, 1)), "partition"),
        (plan("hierarchical", (0, 1, 2), (0, 1), (1, 2)), "partition"),
        (plan("hierarchical", (0, 1, 2), (0, 1, 2), ()), "empty"),
        (plan("ring", (0, 1, 2), (0, 1, 2)), "hierarchical plans only"),
    ],
)
def test_malformed_plans_are_refused_with_the_reason(wrong: Plan, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        validate(wrong, 3)
