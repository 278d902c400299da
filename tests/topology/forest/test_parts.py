"""The algorithms that the forests are made of, each against another way to the same result."""

from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.topology.forest.systems import Graph, hgx, leaf_spine, random_graphs
from trainmesh.errors import PlanError
from trainmesh.topology.forest.arborescence import parents
from trainmesh.topology.forest.balance import is_balanced, trimmed, whole_trimmed
from trainmesh.topology.forest.fabric import Fabric
from trainmesh.topology.forest.packing import packed
from trainmesh.topology.forest.rooted import Rooted, shortage
from trainmesh.topology.forest.splitting import without_switches

COSTS = st.integers(2, 9).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([0, 1, 2, 3, 7, np.inf]), min_size=size, max_size=size),
        min_size=size,
        max_size=size,
    )
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(COSTS)
def test_cheapest_arborescences(rows: list[list[float]]) -> None:
    cost = np.array(rows, dtype=float)
    size = len(cost)
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(size))
    for u, v in np.argwhere(np.isfinite(cost)).tolist():
        if u != v and v != 0:
            graph.add_edge(u, v, weight=cost[u, v])
    parent = parents(cost, 0)
    if len(nx.descendants(graph, 0)) < size - 1:
        assert parent is None
        return
    assert parent is not None
    total = sum(cost[parent[v], v] for v in range(1, size))
    tree = nx.DiGraph([(int(parent[v]), v) for v in range(1, size)])
    assert nx.is_arborescence(tree)
    assert total == nx.minimum_spanning_arborescence(graph).size(weight="weight")


def scaled(graph: Graph, x: Fraction, trees: int) -> Rooted:
    fabric = Fabric.of(*graph)
    whole = [capacity * trees / x for capacity in fabric.capacity]
    assert all(value.denominator == 1 for value in whole)
    return fabric.rooted([int(value) for value in whole], [trees] * fabric.ranks)


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize(
    "rooted",
    [
        scaled(hgx(2), Fraction(65, 3), 13),
        scaled(leaf_spine(4, 2, [20, 15]), Fraction(25, 7), 5),
    ],
)
def test_splitting_keeps_flows_and_capacities(rooted: Rooted, spread: bool) -> None:
    ways = without_switches(rooted, spread=spread)
    capacity = np.zeros((rooted.ranks + 1,) * 2, np.int64)
    used = np.zeros_like(rooted.capacity)
    for (u, v), by_way in ways.items():
        for via, amount in by_way.items():
            capacity[u, v] += amount
            nodes = [u, *via, v]
            for tail, head in zip(nodes, nodes[1:], strict=False):
                used[tail, head] += amount
    assert (used <= rooted.capacity).all()
    capacity[-1, :-1] = rooted.capacity[-1, : rooted.ranks]
    split = Rooted(rooted.ranks, capacity)
    assert not any(shortage(split, rank) for rank in range(rooted.ranks))


def test_splitting_needs_balance() -> None:
    capacity = np.zeros((4, 4), np.int64)
    capacity[0, 2] = capacity[1, 0] = 1
    capacity[2, 1] = 2
    capacity[3, :2] = 1
    with pytest.raises(PlanError, match="switch 2 has not as much capacity in as out"):
        without_switches(Rooted(2, capacity))


def test_packing_with_unequal_roots_and_too_little_capacity() -> None:
    ways: dict[tuple[int, int], dict[tuple[int, ...], int]] = {
        (u, v): {(): 3} for u in range(3) for v in range(3) if u != v
    }
    trees = packed([4, 0, 2], ways)
    assert [sum(t.count for t in trees if t.members[0] == root) for root in range(3)] == [4, 0, 2]
    assert all(sorted(tree.members) == [0, 1, 2] for tree in trees)
    with pytest.raises(PlanError, match="don't hold"):
        packed([4, 0, 3], ways)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(random_graphs(st.integers(2, 7), duplex=False))
def test_trimmed_capacities_are_balanced(graph: Graph) -> None:
    fabric = Fabric.of(*graph)
    for whole in (trimmed(fabric, Fraction(10)), whole_trimmed(fabric, 2, Fraction(10))):
        assert whole is not None
        assert is_balanced(fabric, whole)
        assert min(whole) >= 0
