"""Ways through the link graph, what blocks them, and who yields on a shared link."""

from dataclasses import replace

import pytest

from trainmesh.serving.cluster.graph import Map, RoundTrip
from trainmesh.serving.cluster.traffic import free_share, links_in_use, native_plan
from trainmesh.serving.cluster.verdicts import SubjectKind as On
from trainmesh.serving.cluster.verdicts import Verdict
from trainmesh.serving.config.types import TrafficClass
from trainmesh.topology.graph import Kind, Link, LinkGraph, LinkHealth, Node
from trainmesh.topology.planner import choose
from trainmesh.types import LinkCost, Plan

HOSTS = 4
LEAVES = {"h0": "leaf0", "h1": "leaf0", "h2": "leaf1", "h3": "leaf1"}


def fabric(*, spines: int = 2, quarantined: str = "") -> LinkGraph:
    """Four hosts with a rank each, two leaves, some spines; 100 us and 1 GB/s a link."""
    cost = LinkCost(alpha_s=100e-6, bandwidth_bytes_per_s=1e9)
    leaves = sorted(set(LEAVES.values()))
    tops = [f"spine{n}" for n in range(spines)]
    nodes = [Node(f"h{n}/rank{n}", Kind.RANK, n) for n in range(HOSTS)]
    nodes += [Node(name, Kind.HOST) for name in LEAVES]
    nodes += [Node(name, Kind.SWITCH) for name in (*leaves, *tops)]
    pairs = [(f"h{n}/rank{n}", f"h{n}") for n in range(HOSTS)]
    pairs += [*LEAVES.items(), *((leaf, top) for leaf in leaves for top in tops)]
    links = [Link(*ends, cost) for pair in pairs for ends in (pair, pair[::-1])]
    return LinkGraph(
        nodes,
        [
            replace(link, health=LinkHealth.QUARANTINED) if link.name == quarantined else link
            for link in links
        ],
    )


def verdict(kind: On, subject: str) -> Verdict:
    return Verdict(kind=kind, subject=subject, reason="flaps", owner="admin:eve", since_unix_s=1.0)


def way(node: str, *verdicts: Verdict, here: str = "h0", spines: int = 2) -> RoundTrip:
    found = Map(fabric(spines=spines), here, verdicts).way(node)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("node", "hops"), [("h0", 0), ("h0/rank0", 1), ("h1", 2), ("h3", 4), ("h3/rank3", 5)]
)
def test_the_round_trip_is_the_alphas_both_ways(node: str, hops: int) -> None:
    found = way(node)
    assert found.rtt_s == pytest.approx(2 * hops * 100e-6)
    assert found.bandwidth_bytes_per_s == (1e9 if hops else 0.0)
    assert found.blocked == ""


def test_a_node_that_the_graph_does_not_have() -> None:
    assert Map(fabric(), "h0").way("nowhere") is None
    assert Map(fabric(), "nowhere").way("h0") is None


def test_a_quarantined_link_blocks_what_is_behind_it() -> None:
    verdicts = verdict(On.LINK, "h3->leaf1")
    assert way("h3", verdicts).blocked == (
        "link h3->leaf1 in quarantine: flaps (admin:eve), on the way"
    )
    assert way("h2", verdicts).blocked == ""
    both = verdict(On.LINK, "h3<->leaf1")
    assert "link leaf1->h3 in quarantine" in way("h3", both).blocked


def test_one_of_several_equal_ways_is_avoided_and_the_last_one_is_not() -> None:
    out = verdict(On.LINK, "leaf0<->spine0")
    found = way("h3", out)
    assert found.blocked == ""
    assert found.rtt_s == pytest.approx(800e-6)
    other = verdict(On.NODE, "spine1")
    assert "in quarantine" in way("h3", out, other).blocked
    assert "leaf0->spine0" in way("h3", out, spines=1).blocked


def test_a_quarantined_node_blocks_ways_through_it_but_not_the_routers_own() -> None:
    leaf = verdict(On.NODE, "leaf1")
    assert way("h2", leaf).blocked == ("node leaf1 in quarantine: flaps (admin:eve), on the way")
    assert way("h1", leaf).blocked == ""
    assert way("h3", verdict(On.NODE, "h0")).blocked == ""


def test_links_that_the_training_side_has_in_quarantine_count_too() -> None:
    graph = fabric(spines=1, quarantined="spine0->leaf1")
    found = Map(graph, "h0").way("h3")
    assert found is not None
    assert found.blocked.startswith("link spine0->leaf1 in quarantine")


def test_a_training_job_takes_its_part_of_shared_links_only() -> None:
    graph = fabric()
    used = links_in_use(native_plan(HOSTS), graph)
    assert "h3->leaf1" in used
    parts = {klass: free_share(used, klass) for klass in TrafficClass}
    seen = {klass: Map(graph, "h0").way("h3", share) for klass, share in parts.items()}
    bandwidths = {k: found.bandwidth_bytes_per_s for k, found in seen.items() if found}
    assert bandwidths == {
        TrafficClass.FIRST: 1e9,
        TrafficClass.EQUAL: 5e8,
        TrafficClass.YIELD: 1e8,
    }
    alone = Map(graph, "h0").way("h3", {"h1->leaf0": 0.1})
    assert alone is not None
    assert alone.bandwidth_bytes_per_s == 1e9


def test_links_in_use_are_those_of_the_plan() -> None:
    graph = fabric()
    choice = choose(graph, [25_000_000])
    assert {plan.algorithm for plan in choice.candidates} >= {"native", "tree", "sharded"}
    for plan in choice.candidates:
        used = links_in_use(plan, graph)
        assert used <= {link.name for link in graph.links}
        assert {f"h{n}/rank{n}->h{n}" for n in range(HOSTS)} <= used
    assert links_in_use(native_plan(8), graph) == frozenset()
    plug_in = Plan(algorithm="theirs", world_size=HOSTS, order=tuple(range(HOSTS)))
    assert links_in_use(plug_in, graph) == {link.name for link in graph.links}
