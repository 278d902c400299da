"""What one of several groups of ranks has of a link graph."""

from trainmesh.topology.graph import Kind, Link, LinkGraph, Node, host_graph
from trainmesh.topology.shared import share_of_first
from trainmesh.types import LinkCost

FAST = LinkCost(alpha_s=1e-6, bandwidth_bytes_per_s=8e9)


def rails(num_hosts: int, num_rails: int) -> LinkGraph:
    """Rank r of host h has a link to switch r of its own."""
    nodes = [Node(f"s{rail}", Kind.SWITCH) for rail in range(num_rails)]
    links = []
    for host in range(num_hosts):
        names = [f"h{host}g{rail}" for rail in range(num_rails)]
        for rail, name in enumerate(names):
            nodes.append(Node(name, Kind.RANK, host * num_rails + rail))
            links += [Link(name, f"s{rail}", FAST), Link(f"s{rail}", name, FAST)]
            links += [Link(name, other, FAST) for other in names if other != name]
    return LinkGraph(nodes, links)


def test_groups_of_one_rank_a_host_share_the_hosts_links() -> None:
    whole = host_graph({"a": [0, 1], "b": [2, 3], "c": [4, 5]})
    share = share_of_first(whole, [(0, 2, 4), (1, 3, 5)])
    assert share.world_size == 3
    assert [share.rank_node(place) for place in range(3)] == [
        whole.rank_node(rank) for rank in (0, 2, 4)
    ]
    assert whole.rank_node(1) not in {node.name for node in share.nodes}
    for link in share.links:
        before = whole.link(link.name)
        own = link.src == share.rank_node(0) or link.dst == share.rank_node(0)
        own = own or {link.src, link.dst} & {share.rank_node(1), share.rank_node(2)} != set()
        count = 1 if own else 2
        assert link.cost.bandwidth_bytes_per_s == before.cost.bandwidth_bytes_per_s / count
        assert link.cost.alpha_s == before.cost.alpha_s


def test_groups_with_rails_of_their_own_share_nothing() -> None:
    whole = rails(3, 2)
    share = share_of_first(whole, [(1, 3, 5), (0, 2, 4)])
    assert {node.name for node in share.nodes} == {"s1", "h0g1", "h1g1", "h2g1"}
    assert [share.rank_node(place) for place in range(3)] == ["h0g1", "h1g1", "h2g1"]
    assert {link.cost for link in share.links} == {FAST}


def test_ranks_of_other_groups_pass_on_where_there_is_no_other_way() -> None:
    line = LinkGraph(
        [Node(f"r{rank}", Kind.RANK, rank) for rank in range(4)],
        [Link(f"r{a}", f"r{b}", FAST) for a, b in [(0, 1), (1, 2), (2, 3)]]
        + [Link(f"r{b}", f"r{a}", FAST) for a, b in [(0, 1), (1, 2), (2, 3)]],
    )
    share = share_of_first(line, [(0, 2), (1, 3)])
    assert [(node.name, node.kind) for node in share.nodes] == [
        ("r0", Kind.RANK),
        ("r1", Kind.HOST),
        ("r2", Kind.RANK),
    ]
    halves = {li.name: li.cost.bandwidth_bytes_per_s / 8e9 for li in share.links}
    assert halves == {"r0->r1": 1.0, "r1->r0": 1.0, "r1->r2": 0.5, "r2->r1": 0.5}
