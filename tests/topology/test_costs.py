"""The cost model against the formulas of the literature, written out, and numbers by hand."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.graphs import GB, direct, racks, star
from tests.topology.requests import PLAIN
from trainmesh.plan.schedule import schedule
from trainmesh.topology.bounds import bound
from trainmesh.topology.cost import PlanCost, plan_cost, predict
from trainmesh.topology.crossover import crossovers
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import BUILT_IN
from trainmesh.topology.planners import hierarchical, sharded
from trainmesh.topology.planners.tree import binary_edges, binomial_edges
from trainmesh.topology.request import PlanRequest
from trainmesh.types import Collective, Hop, Plan, Tree

NBYTES = 10**9
ALPHA_S = 10e-6
"""Of a way over a star's two links of 5 us each."""
GBps = 10


def switched(count: int) -> LinkGraph:
    return star([GBps] * count, alpha_us=5)


def ring(count: int, collective: Collective = Collective.ALLREDUCE) -> Plan:
    return Plan(
        algorithm="ring", world_size=count, order=tuple(range(count)), collective=collective
    )


def tree(count: int, edges: list[tuple[int, int]], *, chunks: int = 0) -> Plan:
    down = tuple(Hop(parent, child) for parent, child in edges)
    up = tuple(Hop(hop.dst, hop.src) for hop in reversed(down))
    return Plan(
        algorithm="tree",
        world_size=count,
        order=tuple(range(count)),
        trees=(Tree(0, 1.0, up, down),),
        num_chunks=chunks,
    )


def binomial(count: int) -> Plan:
    """Reduce and broadcast one after the other, whole."""
    return tree(count, binomial_edges(count), chunks=1)


@pytest.mark.parametrize("count", [2, 3, 8, 24])
@pytest.mark.parametrize("nbytes", [1, 10**6, 10**9])
def test_ring(count: int, nbytes: int) -> None:
    """2 (N - 1) alpha + 2 (N - 1) / N M / B; half of it for each of its halves."""
    expected = 2 * (count - 1) * (ALPHA_S + nbytes / count / (GBps * GB))
    assert predict(ring(count), switched(count), nbytes) == pytest.approx(expected)
    for half in (Collective.ALLGATHER, Collective.REDUCE_SCATTER):
        found = predict(ring(count, half), switched(count), nbytes)
        assert found == pytest.approx(expected / 2)


@pytest.mark.parametrize("depth", [1, 3])
def test_binomial_reduce_and_broadcast(depth: int) -> None:
    """2 log2 N (alpha + M / B)."""
    expected = 2 * depth * (ALPHA_S + NBYTES / (GBps * GB))
    assert predict(binomial(2**depth), switched(2**depth), NBYTES) == pytest.approx(expected)


@pytest.mark.parametrize("count", [4, 16])
def test_crossover_of_ring_and_binomial_tree(count: int) -> None:
    """M* = alpha B (N - 1 - log2 N) / (log2 N - (N - 1) / N)."""
    depth = math.log2(count)
    nbytes = ALPHA_S * GBps * GB * (count - 1 - depth) / (depth - (count - 1) / count)
    graph = switched(count)
    costs: dict[str, PlanCost] = {
        "ring": plan_cost(ring(count), graph),
        "tree": plan_cost(binomial(count), graph),
    }
    [change] = crossovers(costs)
    assert (change.before, change.after) == ("tree", "ring")
    assert change.nbytes == pytest.approx(nbytes, rel=1e-4)


@pytest.mark.parametrize("nbytes", [1, 10**5, 10**7, 10**9])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_chain_in_chunks(count: int, nbytes: int) -> None:
    """(d + c - 1) (alpha + M / (c B)) for a tree of depth d there and back, at the best c."""
    graph = direct([(i, i + 1, GBps) for i in range(count - 1)])
    alpha_s = 5e-6
    links = [
        type(li)(li.src, li.dst, type(li.cost)(alpha_s=alpha_s, bandwidth_bytes_per_s=GBps * GB))
        for li in graph.links
    ]
    plan = tree(count, [(i, i + 1) for i in range(count - 1)])
    found = plan_cost(plan, LinkGraph(graph.nodes, links)).predict(nbytes)
    depth = 2 * (count - 1)

    def seconds(chunks: int) -> float:
        return (depth + chunks - 1) * (alpha_s + nbytes / (chunks * GBps * GB))

    assert found.time_s == pytest.approx(min(map(seconds, range(1, 5000))))
    assert found.time_s == pytest.approx(seconds(found.num_chunks))


def test_a_double_binary_tree_is_as_good_as_a_ring_for_large_buckets() -> None:
    """Each rank is inside one tree and a leaf of the other: no link carries more than 1 1/2 times
    the bytes both ways together, where a ring has 2 (N - 1) / N."""
    count = 16
    halves = []
    for order in (range(count), range(count - 1, -1, -1)):
        down = tuple(Hop(order[a], order[b]) for a, b in binary_edges(count))
        up = tuple(Hop(hop.dst, hop.src) for hop in reversed(down))
        halves.append(Tree(order[0], 0.5, up, down))
    plan = Plan(
        algorithm="tree",
        world_size=count,
        order=tuple(range(count)),
        trees=tuple(halves),
        num_chunks=0,
    )
    cost = plan_cost(plan, switched(count))
    # As a leaf of one tree it sends and receives a half once, inside the other three times.
    assert max(cost.loads.values()) == pytest.approx(0.5 * (1 + 3))
    assert cost.busiest_s_per_byte == pytest.approx(2 / (GBps * GB))


@pytest.mark.parametrize(("uplink", "in_turn", "at_once"), [(10, 6.25, 10.0), (5, 3.846154, 5.0)])
def test_blueconnect_in_turn_and_in_a_pipeline(
    uplink: float, in_turn: float, at_once: float
) -> None:
    """2 racks of 4 hosts of 25: 2 (3/4) / 25 + 1 / uplink, and the larger of the two."""
    graph = racks(range(8), uplink=uplink)
    whole = hierarchical.plan(graph, PlanRequest(NBYTES, executors=PLAIN))
    assert whole is not None
    assert NBYTES / predict(whole, graph, NBYTES) / GB == pytest.approx(in_turn)
    chunked = hierarchical.plan(graph, PlanRequest(NBYTES))
    assert chunked is not None
    assert NBYTES / predict(chunked, graph, NBYTES) / GB == pytest.approx(at_once)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([5.0, 10.0, 12.5, 25.0, 40.0, 100.0]), min_size=3, max_size=12))
def test_a_star_is_as_fast_as_its_formula(nics: list[float]) -> None:
    """T* = max(M / min B, 2 (N - 1) M / sum B) is the bound, and shards by speed reach it."""
    graph = star(nics)
    expected = max(1 / min(nics), 2 * (len(nics) - 1) / sum(nics))
    assert bound(graph, NBYTES).time_s == pytest.approx(expected)
    plan = sharded.plan(graph, PlanRequest(NBYTES))
    assert plan is not None
    assert predict(plan, graph, NBYTES) == pytest.approx(expected)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.permutations(range(8)), st.sampled_from([1.0, 10.0, 25.0, 60.0]))
def test_no_order_of_ranks_loads_an_uplink_less_than_the_contiguous_one(
    order: list[int], uplink: float
) -> None:
    graph = racks(range(8), uplink=uplink)
    uplinks = [f"leaf{rack}->core" for rack in range(2)]
    loads = [
        max(
            plan_cost(Plan(algorithm="ring", world_size=8, order=o), graph).loads[u]
            for u in uplinks
        )
        for o in (tuple(range(8)), tuple(order))
    ]
    assert loads[0] == pytest.approx(2 * 7 / 8)
    assert loads[1] >= loads[0] * (1 - 1e-9)


@pytest.mark.parametrize("collective", Collective)
@pytest.mark.parametrize("count", [3, 8])
def test_every_message_costs_its_sender_an_alpha(collective: Collective, count: int) -> None:
    """As none of today's executors sends one while another is on its way to the same wire."""
    graph = switched(count)
    for planner in BUILT_IN.values():
        plan = planner(graph, PlanRequest(1, collective))
        if plan is not None:
            rounds = schedule(plan).rounds
            ways = {(i, msg.src, msg.dst) for i, msgs in enumerate(rounds) for msg in msgs}
            busiest = max(Counter(src for _, src, _ in ways).values())
            latency_s = plan_cost(plan, graph).latency_s
            assert latency_s >= busiest * ALPHA_S * (1 - 1e-9), plan.algorithm
