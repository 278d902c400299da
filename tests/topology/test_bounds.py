"""Bounds against brute force and against formulations of their own."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.optimize import linprog

from tests.topology.graphs import hgx, racks, random_graphs, star
from tests.topology.systems import circle
from trainmesh.topology.bounds import bound, cuts
from trainmesh.topology.bounds.tightest import _limit
from trainmesh.topology.graph import Kind, LinkGraph
from trainmesh.types import Collective

NBYTES = 10**9
thorough = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)


def algbw(graph: LinkGraph, collective: Collective) -> float:
    return NBYTES / bound(graph, NBYTES, collective).time_s


def rank_names(graph: LinkGraph) -> set[str]:
    return {graph.rank_node(rank) for rank in range(graph.world_size)}


def least_broadcast_ratio(graph: LinkGraph) -> float:
    """x* from its definition: all sets of nodes."""
    names, ranks = [node.name for node in graph.nodes], rank_names(graph)
    least = float("inf")
    for size in range(1, len(names)):
        for inside in map(set, combinations(names, size)):
            if ranks & inside and not ranks <= inside:
                out = sum(
                    link.cost.bandwidth_bytes_per_s
                    for link in graph.links
                    if link.src in inside and link.dst not in inside
                )
                least = min(least, out / len(ranks & inside))
    return least


def reverse(graph: LinkGraph) -> LinkGraph:
    links = [type(li)(li.dst, li.src, li.cost, li.link_class) for li in graph.links]
    return LinkGraph(graph.nodes, links)


@thorough
@given(random_graphs(max_ranks=5))
def test_gathers_and_scatters_agree_with_brute_force(graph: LinkGraph) -> None:
    x = least_broadcast_ratio(graph)
    assert algbw(graph, Collective.ALLGATHER) == pytest.approx(graph.world_size * x, rel=1e-9)
    scatter = algbw(reverse(graph), Collective.REDUCE_SCATTER)
    assert scatter == pytest.approx(graph.world_size * x, rel=1e-9)


def forest_optimum(graph: LinkGraph) -> float:  # noqa: C901 - one programme, written out
    """The linear programme with a flow to and from every rank (no cuts at all): maximise R = sum
    of z; a flow of R from a source that feeds z_r into rank r to every rank inside capacities a,
    one of R from every rank to a sink that takes z_r inside c; a + c <= b; a and c are balanced at
    switches."""
    number = {node.name: index for index, node in enumerate(graph.nodes)}
    tails = [number[link.src] for link in graph.links]
    heads = [number[link.dst] for link in graph.links]
    b = np.array([link.cost.bandwidth_bytes_per_s / 1e9 for link in graph.links])
    count, ranks, nodes = len(b), graph.world_size, len(number)
    rank_index = [number[graph.rank_node(rank)] for rank in range(ranks)]
    switches = [number[n.name] for n in graph.nodes if n.kind is not Kind.RANK]
    size = 2 * count + ranks + 2 * ranks * (count + ranks)
    roots = 2 * count
    less, equal, most = [], [], []

    def row() -> np.ndarray:
        return np.zeros(size)

    for link in range(count):
        line = row()
        line[link] = line[count + link] = 1
        less.append(line)
        most.append(b[link])
    for kind in (0, 1):
        for switch in switches:
            line = row()
            for link in range(count):
                line[kind * count + link] += (heads[link] == switch) - (tails[link] == switch)
            equal.append(line)
        for rank in range(ranks):
            first = roots + ranks + (kind * ranks + rank) * (count + ranks)
            for link in range(count):
                line = row()
                line[first + link], line[kind * count + link] = 1, -1
                less.append(line)
                most.append(0)
            for other in range(ranks):
                line = row()
                line[first + count + other], line[roots + other] = 1, -1
                less.append(line)
                most.append(0)
            for node in range(nodes):
                line = row()
                sign = 1 if kind == 0 else -1
                for link in range(count):
                    change = (heads[link] == node) - (tails[link] == node)
                    line[first + link] += sign * change
                for other, index in enumerate(rank_index):
                    if index == node:
                        line[first + count + other] += 1
                if node == rank_index[rank]:
                    line[roots : roots + ranks] -= 1
                equal.append(line)
    objective = row()
    objective[roots : roots + ranks] = -1
    found = linprog(
        objective, A_ub=np.array(less), b_ub=most, A_eq=np.array(equal), b_eq=np.zeros(len(equal))
    )
    assert found.status == 0
    return float(-found.fun) * 1e9


@settings(thorough, max_examples=40)
@given(random_graphs(max_ranks=5))
def test_the_bound_of_all_reduce_is_the_optimum_over_forests(graph: LinkGraph) -> None:
    assert algbw(graph, Collective.ALLREDUCE) == pytest.approx(forest_optimum(graph), rel=1e-6)


@settings(thorough, max_examples=15)
@given(random_graphs(max_ranks=24))
def test_what_holds_on_any_graph(graph: LinkGraph) -> None:
    """Half an all-gather's optimum after half a reduce-scatter's is an all-reduce; no cut and no
    volume allows more than the bound."""
    one_way = [algbw(graph, c) for c in (Collective.ALLGATHER, Collective.REDUCE_SCATTER)]
    ranks = rank_names(graph)
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
    x = least_broadcast_ratio(graph)
    assert algbw(graph, Collective.ALLGATHER) >= graph.world_size * x * (1 - 1e-9)
