"""All-gather forests reach the optimum of every reference system, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.forest.systems import (
    Graph,
    cut_optimum,
    dgx1v,
    flow_optimum,
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
from trainmesh.topology.forest import Forest, OutTree, allgather_forest, check, reversed_hops

SYSTEMS = {
    "star": (star([100] * 8), Fraction(100, 7)),
    "star, one of 4 slow": (star([200, 100, 100, 50]), Fraction(50, 3)),
    "star, one of 8 at 75": (star([100] * 7 + [75]), Fraction(75, 7)),
    "star, one of 8 at 40": (star([100] * 7 + [40]), Fraction(40, 7)),
    "star, two of 8 slow": (star([100] * 6 + [50, 50]), Fraction(50, 7)),
    "ring of 4": (ring(4), Fraction(2, 3)),
    "ring of 8": (ring(8), Fraction(2, 7)),
    "hypercube": (hypercube(), Fraction(3, 7)),
    "torus": (grid(torus=True), Fraction(4, 15)),
    "mesh": (grid(torus=False), Fraction(2, 15)),
    "DGX-1V": (dgx1v(), Fraction(150, 7)),
    "DGX-1V, a link halved": (dgx1v(25), Fraction(125, 7)),
    "DGX-1V, a link down": (dgx1v(0), Fraction(100, 7)),
    "MI250": (mi250(), Fraction(150, 7)),
    "A100 1x8": (hgx(1), Fraction(300, 7)),
    "A100 2x8": (hgx(2), Fraction(65, 3)),
    "A100 2x8, a NIC halved": (hgx(2, 12.5), Fraction(125, 6)),
    "A100 2x8, a NIC down": (hgx(2, 0), Fraction(20)),
    "racks": (leaf_spine(2, 4, [25]), Fraction(25, 7)),
    "racks, narrow uplink": (leaf_spine(2, 4, [10]), Fraction(5, 2)),
    "racks, slow host": (leaf_spine(2, 4, [25], 12.5), Fraction(25, 14)),
    "two spines": (leaf_spine(4, 4, [20, 15]), Fraction(5, 3)),
}


def forest_of(graph: Graph, x: Fraction, max_trees: int | None = None) -> Forest:
    """A proven one, with equal bandwidth for each rank."""
    ranks, capacities = graph
    forest = allgather_forest(ranks, capacities, x, max_trees=max_trees)
    check(ranks, capacities, forest.trees)
    for rank in range(len(ranks)):
        assert sum(tree.weight for tree in forest.trees if tree.root == rank) == forest.rate
    assert forest.efficiency == forest.rate / x <= 1
    return forest


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "x"), SYSTEMS.values(), ids=SYSTEMS)
def test_reference_systems_are_reached_exactly(graph: Graph, x: Fraction) -> None:
    assert cut_optimum(graph) == x
    assert forest_of(graph, x).rate == x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "trees", "efficiency"),
    [
        # The same rate with fewer, deeper trees.
        (hgx(2), 64, 1.0),
        (hgx(2, 12.5), 32, 1.0),
        # One or two trees a rank can't share a link of odd width fairly.
        (hgx(2), 16, 0.98),
        (mi250(), 16, 0.77),
        (grid(torus=True), 16, 0.93),
        (uneven(hgx(2)), 64, 0.999),
    ],
)
def test_fewer_trees_cost_little(graph: Graph, trees: int, efficiency: float) -> None:
    forest = forest_of(graph, cut_optimum(graph), trees)
    assert len(forest.trees) <= trees
    assert forest.efficiency >= efficiency


@pytest.mark.slow
@pytest.mark.parametrize(
    "graph", [star([100] * 8), dgx1v(), mi250(), hgx(2), leaf_spine(2, 4, [10])]
)
def test_measured_bandwidths_lose_next_to_nothing(graph: Graph) -> None:
    measured = uneven(graph)
    assert forest_of(measured, cut_optimum(measured)).efficiency >= 0.9995


@pytest.mark.parametrize("slow", [Fraction(1, 10**6), 10**-7 * 3])
def test_very_unequal_links(slow: Fraction) -> None:
    for graph in (star([100] * 7 + [slow]), leaf_spine(2, 4, [slow])):
        x = cut_optimum(graph)
        assert forest_of(graph, x).rate == x


@pytest.mark.slow
def test_an_optimum_that_is_only_a_bound() -> None:
    x = Fraction(65, 3)
    forest = forest_of(hgx(2), x * Fraction(11, 10))
    assert 0.999 * x <= forest.rate <= x


def test_stars_stay_shallow() -> None:
    for tree in forest_of(star([100] * 8), Fraction(100, 7)).trees:
        assert all(hop.src == tree.root and hop.via == ("switch",) for hop in tree.hops)


def test_a_reduce_scatter_is_the_reverse() -> None:
    ranks, capacities = uneven(leaf_spine(2, 2, [20]))
    back = {(dst, src): bandwidth for (src, dst), bandwidth in capacities.items()}
    forest = allgather_forest(ranks, back, cut_optimum((ranks, back)))
    for tree in forest.trees:
        hops = reversed_hops(tree.hops)
        senders = [hop.src for hop in hops]
        assert sorted([*senders, tree.root]) == [0, 1, 2, 3]
        # A rank has all it is to add before it sends.
        assert all(hop.dst not in senders[: senders.index(hop.src) + 1] for hop in hops)
        assert reversed_hops(hops) == tree.hops


def test_switches_do_not_multicast() -> None:
    """Out of the switch goes three times what comes in: cuts take no notice, trees can't use it."""
    ranks = ["a", "b", "c", "d"]
    capacities = {("a", "s"): 1, ("s", "b"): 1, ("s", "c"): 1, ("s", "d"): 1}
    capacities |= {(rank, "a"): 1 for rank in "bcd"}
    graph = ranks, {arc: Fraction(c) for arc, c in capacities.items()}
    x = cut_optimum(graph)
    assert x == Fraction(1, 3)
    assert float(forest_of(graph, x).rate) == pytest.approx(flow_optimum(graph), rel=1e-3)
    assert flow_optimum(graph) < 0.3


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=60)
@given(random_graphs(st.integers(2, 9), duplex=True))
def test_random_graphs_with_equal_directions_are_exact(graph: Graph) -> None:
    x = cut_optimum(graph)
    assert forest_of(graph, x).rate == x


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=40)
@given(random_graphs(st.integers(2, 6), duplex=False))
def test_random_graphs_with_unequal_directions(graph: Graph) -> None:
    forest = forest_of(graph, cut_optimum(graph))
    best = flow_optimum(graph)
    assert 0.999 * best <= forest.rate <= best * (1 + 1e-6)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=20)
@given(random_graphs(st.integers(3, 8), duplex=True), st.integers(1, 3))
def test_the_limit_on_trees_holds(graph: Graph, each: int) -> None:
    most = each * len(graph[0])
    assert len(forest_of(graph, cut_optimum(graph), most).trees) <= most


@settings(derandomize=True, deadline=None, max_examples=3)
@given(random_graphs(st.just(24), duplex=True))
def test_random_graphs_of_24_ranks(graph: Graph) -> None:
    x = cut_optimum(graph)
    assert forest_of(graph, x).rate == x


def test_bad_input() -> None:
    ranks, capacities = star([100] * 4)
    with pytest.raises(PlanError, match="max_trees is 3: each of the 4 ranks"):
        allgather_forest(ranks, capacities, Fraction(100, 3), max_trees=3)
    with pytest.raises(GraphError, match="two different ranks"):
        allgather_forest(["a", "a"], capacities, Fraction(1))
    with pytest.raises(GraphError, match="g0->switch: capacity -1"):
        allgather_forest(ranks, {**capacities, ("g0", "switch"): Fraction(-1)}, Fraction(1))
    one_way = {arc: bandwidth for arc, bandwidth in capacities.items() if arc != ("g0", "switch")}
    with pytest.raises(PlanError, match="can't reach"):
        allgather_forest(ranks, one_way, cut_optimum((ranks, one_way)))


def test_weights_are_exact_numbers() -> None:
    ranks, capacities = dgx1v()
    trees = allgather_forest(ranks, capacities, Fraction(150, 7)).trees
    assert {type(tree.weight) for tree in trees} == {Fraction}
    assert {type(tree) for tree in trees} == {OutTree}
