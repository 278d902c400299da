"""Bounds of graphs that are too large for brute force, or treated as if they were."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from tests.topology import oracles
from tests.topology.graphs import hgx, racks, random_graphs, star
from tests.topology.systems import circle
from trainmesh.topology.bounds import bound, cuts
from trainmesh.topology.bounds.tightest import _limit
from trainmesh.topology.graph import LinkGraph, host_graph
from trainmesh.types import Collective, LinkCost

NBYTES = 10**9
thorough = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


def algbw(graph: LinkGraph, collective: Collective) -> float:
    return NBYTES / bound(graph, NBYTES, collective).time_s


@settings(thorough, max_examples=15)
@given(random_graphs(max_ranks=24))
def test_what_holds_on_any_graph(graph: LinkGraph) -> None:
    """Half an all-gather's optimum after half a reduce-scatter's is an all-reduce; no cut and no
    volume allows more than the bound."""
    one_way = [algbw(graph, c) for c in (Collective.ALLGATHER, Collective.REDUCE_SCATTER)]
    ranks = {graph.rank_node(rank) for rank in range(graph.world_size)}
    out = [li.cost.bandwidth_bytes_per_s for li in graph.links if li.src in ranks]
    into = [li.cost.bandwidth_bytes_per_s for li in graph.links if li.dst in ranks]
    limit = min(sum(out), sum(into)) / (2 * (len(ranks) - 1))
    both = algbw(graph, Collective.ALLREDUCE)
    assert both <= limit * (1 + 1e-9)
    if all(found.exact for found in (bound(graph, 1, c) for c in Collective)):
        assert both >= 1 / (1 / one_way[0] + 1 / one_way[1]) * (1 - 1e-6)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if every graph were too large for anything but colours and groups."""
    monkeypatch.setattr(cuts, "EXACT_WORK", 0)
    monkeypatch.setattr("trainmesh.topology.bounds.tightest.PROGRAMME_RANKS", 0)
    _limit.cache_clear()
    yield
    _limit.cache_clear()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("graph", "gather", "both"),
    [
        (circle(8), 16 / 7, 8 / 7),
        (hgx(2), 1040 / 3, 520 / 3),
        (hgx(2, 12.5), 1000 / 3, 2075 / 12),
        (racks(range(8), uplink=10), 20, 10),
        (racks(range(16), uplink=50, nic=100), 200 / 3, 100 / 3),
        (star([100] * 7 + [50]), 400 / 7, 50),
    ],
)
def test_clusters_are_bounded_through_their_colours(
    graph: LinkGraph, gather: float, both: float
) -> None:
    assert algbw(graph, Collective.ALLGATHER) / 1e9 == pytest.approx(gather)
    found = algbw(graph, Collective.ALLREDUCE) / 1e9
    assert both * (1 - 1e-9) <= found <= both * 1.01
    assert not bound(graph, NBYTES, Collective.ALLREDUCE).exact


@pytest.mark.usefixtures("large")
@thorough
@given(random_graphs(max_ranks=5))
def test_a_bound_through_colours_never_claims_too_much(graph: LinkGraph) -> None:
    exact = oracles.all_gather_over_cuts(graph)
    assert algbw(graph, Collective.ALLGATHER) >= exact * (1 - 1e-9)


@pytest.mark.parametrize("slow_bytes_per_s", [1.0, 1e4])
def test_links_that_differ_by_more_than_the_solver_tells_apart(slow_bytes_per_s: float) -> None:
    """As an absurd measurement makes them: its programme found a rate of 0 and divided by it."""
    graph = host_graph({"a": [0, 1], "b": [2], "c": [3]})
    costs = [
        LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=slow_bytes_per_s if place % 3 == 0 else 1e10)
        for place in range(len(graph.links))
    ]
    links = [replace(link, cost=cost) for link, cost in zip(graph.links, costs, strict=True)]
    found = bound(LinkGraph(graph.nodes, links), 1_000)
    assert found.time_s == pytest.approx(1_000 / slow_bytes_per_s)
    assert found.exact is (slow_bytes_per_s >= 1e4)
