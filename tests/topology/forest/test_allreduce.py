"""All-reduce forests against published optima and against the bound that they prove."""

import math

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.forest.systems import (
    Graph,
    cut_optimum,
    dgx1v,
    grid,
    hgx,
    hypercube,
    leaf_spine,
    mi250,
    random_graphs,
    ring,
    star,
    uneven,
)
from trainmesh.errors import GraphError, PlanError
from trainmesh.topology.forest import PairForest, allreduce_forest, check
from trainmesh.topology.forest.trees import Arc

SYSTEMS = {
    "star of 4": (star([100] * 4), 200 / 3),
    "star, one of 4 at 50": (star([100] * 3 + [50]), 50),
    "star, one of 4 at 25": (star([100] * 3 + [25]), 25),
    "star, 200 to 50": (star([200, 100, 100, 50]), 50),
    "star of 8": (star([100] * 8), 400 / 7),
    "star, one of 8 at 75": (star([100] * 7 + [75]), 775 / 14),
    "star, one of 8 at 50": (star([100] * 7 + [50]), 50),
    "star, one of 8 at 40": (star([100] * 7 + [40]), 40),
    "star, one of 8 at 25": (star([100] * 7 + [25]), 25),
    "star, two of 8 at 50": (star([100] * 6 + [50, 50]), 50),
    "ring of 4": (ring(4), 4 / 3),
    "ring of 8": (ring(8), 8 / 7),
    "hypercube": (hypercube(), 12 / 7),
    "torus": (grid(torus=True), 32 / 15),
    "mesh": (grid(torus=False), 8 / 5),
    "DGX-1V": (dgx1v(), 600 / 7),
    "DGX-1V, a link halved": (dgx1v(25), 575 / 7),
    "DGX-1V, a link down": (dgx1v(0), 550 / 7),
    "MI250": (mi250(), 1200 / 7),
    "A100 1x8": (hgx(1), 1200 / 7),
    "A100 2x8": (hgx(2), 520 / 3),
    "A100 2x8, a NIC halved": (hgx(2, 12.5), 2075 / 12),
    "racks": (leaf_spine(2, 4, [25]), 100 / 7),
    "racks, narrow uplink": (leaf_spine(2, 4, [10]), 10),
    "racks, slow host": (leaf_spine(2, 4, [25], 12.5), 12.5),
}


def forest_of(graph: Graph, max_trees: int = 64, target: float | None = None) -> PairForest:
    """A proven one."""
    ranks, capacities = graph
    forest = allreduce_forest(ranks, capacities, max_trees=max_trees, target=target)
    check(ranks, capacities, forest.pairs)
    assert len(forest.pairs) <= max_trees
    assert sum(pair.weight for pair in forest.pairs) == forest.rate
    assert forest.rate <= forest.full_rate * (1 + 1e-9)
    assert forest.full_rate <= forest.bound * (1 + 1e-9)
    return forest


def cheapest_pair(graph: Graph, prices: dict[Arc, float]) -> float:
    """By networkx: cheapest ways over switches, then Edmonds' branching from and to each rank."""
    ranks, _ = graph
    logical: nx.DiGraph[str] = nx.DiGraph()
    for rank in ranks:
        ways: nx.DiGraph[str] = nx.DiGraph()
        for (src, dst), price in prices.items():
            # Another rank may end a way, but not forward.
            if src == rank or src not in ranks:
                ways.add_edge(src, dst, weight=price)
        if rank in ways:
            lengths = nx.single_source_dijkstra_path_length(ways, rank)
            ends = [(rank, end, length) for end, length in lengths.items() if end in ranks]
            logical.add_weighted_edges_from(end for end in ends if end[1] != rank)
    return min(branching(logical, rank) + branching(logical.reverse(), rank) for rank in ranks)


def branching(logical: "nx.DiGraph[str]", root: str) -> float:
    rooted: nx.DiGraph[str] = nx.DiGraph(logical)
    rooted.remove_edges_from(list(logical.in_edges(root)))
    try:
        return nx.minimum_spanning_arborescence(rooted).size(weight="weight")
    except nx.NetworkXException:
        return math.inf


def check_bound(graph: Graph, forest: PairForest) -> None:
    """No pair is cheaper than 1, and all capacity together is worth the bound."""
    assert cheapest_pair(graph, forest.prices) == pytest.approx(1)
    worth = sum(float(graph[1][arc]) * price for arc, price in forest.prices.items())
    assert worth == pytest.approx(forest.bound)


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "rate"), SYSTEMS.values(), ids=SYSTEMS)
def test_reference_systems(graph: Graph, rate: float) -> None:
    forest = forest_of(graph, target=rate)
    assert forest.bound >= rate * (1 - 1e-9)
    assert forest.rate >= 0.998 * rate
    assert forest.rate <= rate * (1 + 1e-9)


@pytest.mark.parametrize(
    "graph", [star([100] * 7 + [75]), dgx1v(25), leaf_spine(2, 2, [20, 10]), hypercube()]
)
def test_prices_prove_the_bound(graph: Graph) -> None:
    forest = forest_of(graph)
    assert forest.rate >= 0.999 * forest.bound
    check_bound(graph, forest)


@pytest.mark.slow
def test_degraded_systems_beat_reduce_scatter_and_all_gather() -> None:
    for graph in (dgx1v(25), dgx1v(0), hgx(2, 12.5), grid(torus=False)):
        halves = len(graph[0]) * cut_optimum(graph) / 2
        assert forest_of(graph).rate > 1.03 * float(halves)


@pytest.mark.slow
@pytest.mark.parametrize(("max_trees", "part"), [(64, 0.998), (32, 0.97), (16, 0.85), (1, 0.1)])
def test_fewer_trees_cost_little(max_trees: int, part: float) -> None:
    forest = forest_of(hgx(2, 12.5), max_trees)
    assert forest.rate >= part * forest.bound
    assert forest.full_rate >= 0.999 * forest.bound


@pytest.mark.parametrize("graph", [star([100] * 8), dgx1v(), mi250(), leaf_spine(2, 4, [10])])
def test_measured_bandwidths(graph: Graph) -> None:
    forest = forest_of(uneven(graph))
    assert forest.rate >= 0.999 * forest.bound


@pytest.mark.parametrize("slow", [1e-3, 1e-6])
def test_very_unequal_links(slow: float) -> None:
    for graph in (star([100] * 7 + [slow]), leaf_spine(2, 4, [slow])):
        assert forest_of(graph).rate == pytest.approx(slow, rel=1e-6)


def test_any_unit() -> None:
    ranks, capacities = dgx1v(25)
    in_bytes = {arc: float(bandwidth) * 1e9 for arc, bandwidth in capacities.items()}
    assert allreduce_forest(ranks, in_bytes).rate == pytest.approx(82.142857e9)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(random_graphs(st.integers(2, 8), duplex=False))
def test_random_graphs(graph: Graph) -> None:
    forest = forest_of(graph)
    assert forest.rate >= 0.998 * forest.bound
    check_bound(graph, forest)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=3)
@given(random_graphs(st.just(24), duplex=False))
def test_random_graphs_of_24_ranks(graph: Graph) -> None:
    forest = forest_of(graph)
    assert forest.rate >= 0.98 * forest.bound


def test_the_same_twice() -> None:
    ranks, capacities = leaf_spine(2, 4, [10])
    assert allreduce_forest(ranks, capacities) == allreduce_forest(ranks, capacities)


def test_bad_input() -> None:
    ranks, capacities = star([100] * 4)
    with pytest.raises(PlanError, match="max_trees is 0"):
        allreduce_forest(ranks, capacities, max_trees=0)
    with pytest.raises(GraphError, match="two different ranks"):
        allreduce_forest(["g0"], capacities)
    with pytest.raises(GraphError, match="capacity nan"):
        allreduce_forest(ranks, {**capacities, ("g0", "switch"): float("nan")})
    one_way = {arc: bandwidth for arc, bandwidth in capacities.items() if arc != ("g0", "switch")}
    with pytest.raises(PlanError, match="no rank both reaches all and is reached"):
        allreduce_forest(ranks, one_way)
    with pytest.raises(PlanError, match="no rank both"):
        allreduce_forest(ranks, {})
