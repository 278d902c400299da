"""Merging descriptions of one cluster: whose word counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.topology.graphs import random_graphs
from trainmesh.errors import GraphError
from trainmesh.topology.graph import Kind, Link, LinkGraph, Node, Provenance, host_graph
from trainmesh.topology.importers.fragment import Fragment
from trainmesh.topology.merge import merge
from trainmesh.types import LinkCost

PAIR = (Node("a", Kind.RANK, 0), Node("b", Kind.RANK, 1))


def pair(GBps: float, provenance: Provenance) -> Fragment:
    cost = LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=GBps * 1e9)
    links = (Link("a", "b", cost, "x", provenance), Link("b", "a", cost, "x", provenance))
    return Fragment(PAIR, links)


@given(
    st.lists(st.tuples(st.integers(1, 100), st.sampled_from(Provenance)), min_size=1, max_size=6)
)
def test_the_best_source_counts_and_of_equals_the_later(
    said: list[tuple[int, Provenance]],
) -> None:
    graph = merge(*(pair(*words) for words in said))
    best = max(provenance for _, provenance in said)
    expected = [GBps for GBps, provenance in said if provenance is best][-1]
    assert graph.link("a->b").cost.bandwidth_bytes_per_s == expected * 1e9
    assert graph.link("a->b").provenance is best


def test_nodes_and_links_of_all_sources_are_in_it() -> None:
    switch = Node("sw", Kind.SWITCH)
    cost = LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=1e9)
    links = tuple(
        link for rank in ("a", "b") for link in (Link(rank, "sw", cost), Link("sw", rank, cost))
    )
    graph = merge(pair(1, Provenance.DECLARED), Fragment((switch, *PAIR), links))
    assert [node.name for node in graph.nodes] == ["a", "b", "sw"]
    assert len(graph.links) == 6


@given(random_graphs())
def test_a_graph_merged_with_itself_is_its_next_version(graph: LinkGraph) -> None:
    merged = merge(graph, graph)
    assert merged.digest == graph.digest
    assert merged.version == graph.version + 1
    assert merge(Fragment(graph.nodes, graph.links)).version == 1


def test_a_host_graph_and_what_was_discovered_share_their_nodes() -> None:
    assumed = host_graph({"h": [0, 1]})
    nodes = (Node("h/rank0", Kind.RANK, 0), Node("h/rank1", Kind.RANK, 1))
    cost = LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=240e9)
    ways = (("h/rank0", "h/rank1"), ("h/rank1", "h/rank0"))
    links = tuple(Link(*way, cost, "nvlink", Provenance.DISCOVERED) for way in ways)
    graph = merge(assumed, Fragment(nodes, links))
    assert graph.world_size == 2
    assert [link.name for link in graph.path(0, 1)] == ["h/rank0->h/rank1"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            Fragment((Node("a", Kind.SWITCH),), ()),
            "node 'a' is a rank in one source and a switch in another; rename one of them",
        ),
        (
            Fragment((Node("a", Kind.RANK, 2),), ()),
            "node 'a' is rank 0 in one source and rank 2 in another; give the sources of one job",
        ),
        (
            Fragment((Node("c", Kind.RANK, 1),), ()),
            "rank 1 is node 'b' in one source and 'c' in another; give both the same host name",
        ),
        (
            Fragment((Node("c", Kind.RANK, 2),), ()),
            "no path from a to c: the graph is disconnected",
        ),
        (
            Fragment((), (Link("a", "d", LinkCost(alpha_s=0, bandwidth_bytes_per_s=1)),)),
            "link a->d",
        ),
    ],
)
def test_sources_that_disagree_are_refused(other: Fragment, says: str) -> None:
    with pytest.raises(GraphError) as caught:
        merge(pair(1, Provenance.DECLARED), other)
    assert str(caught.value).startswith(says)


def both_ways(a: str, b: str, provenance: Provenance) -> tuple[Link, Link]:
    cost = LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=1e9)
    return Link(a, b, cost, "x", provenance), Link(b, a, cost, "x", provenance)


def test_a_guess_between_nodes_of_which_more_is_known_is_left_out() -> None:
    switch = Node("sw", Kind.SWITCH)
    known = (
        *both_ways("a", "sw", Provenance.DISCOVERED),
        *both_ways("b", "sw", Provenance.MEASURED),
    )
    assumed = pair(1, Provenance.ASSUMED)
    names = {link.name for link in merge(assumed, Fragment((switch, *PAIR), known)).links}
    assert names == {"a->sw", "sw->a", "b->sw", "sw->b"}
    # Of b nothing else is known: the guess is all there is.
    names = {link.name for link in merge(assumed, Fragment((switch, *PAIR), known[:2])).links}
    assert names == {"a->sw", "sw->a", "a->b", "b->a"}


def test_a_guess_without_which_a_rank_is_cut_off_stays() -> None:
    nodes = (*PAIR, Node("s", Kind.SWITCH), Node("t", Kind.SWITCH))
    known = (
        *both_ways("a", "s", Provenance.DISCOVERED),
        *both_ways("b", "t", Provenance.DISCOVERED),
    )
    graph = merge(pair(1, Provenance.ASSUMED), Fragment(nodes, known))
    assert graph.link("a->b").provenance is Provenance.ASSUMED
