"""Topology documents: what is read, and what is refused with line and name."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainmesh.errors import GraphError
from trainmesh.topology.document import dump, load, load_file
from trainmesh.topology.graph import (
    MAX_LINKS,
    Kind,
    Link,
    LinkGraph,
    Node,
    Provenance,
    host_graph,
)
from trainmesh.types import LinkCost
from trainmesh.wire import encode

GOOD = """
version: 1
nodes:
  g0: {kind: rank}
  g1: {kind: rank}
  sw: {kind: switch}
links:
  - {src: g0, dst: sw, bandwidth_GBps: 25, alpha_us: 5}
  - {src: g1, dst: sw, bandwidth_gbps: 100, duplex: false}
  - {src: sw, dst: g1, bandwidth_GBps: 2.5e1, class: roce, duplex: false}
"""


def test_a_document_becomes_the_graph_it_says() -> None:
    graph = load(GOOD, source="good.yaml")
    assert graph.world_size == 2
    assert [graph.rank_node(rank) for rank in range(2)] == ["g0", "g1"]
    assert len(graph.links) == 4
    link = graph.link("g0->sw")
    assert link.cost.alpha_s == pytest.approx(5e-6)
    assert link.cost.bandwidth_bytes_per_s == 25e9
    assert graph.link("g1->sw").cost.bandwidth_bytes_per_s == pytest.approx(12.5e9)
    assert graph.link("sw->g1").link_class == "roce"
    assert link.provenance is Provenance.DECLARED


def test_ranks_may_be_numbered() -> None:
    text = GOOD.replace("g0: {kind: rank}", "g0: {kind: rank, rank: 1}")
    text = text.replace("g1: {kind: rank}", "g1: {kind: rank, rank: 0}")
    assert load(text, source="x").rank_node(0) == "g1"


@pytest.mark.parametrize("hosts", [{"a": [0]}, {"a": [0, 1], "b": [2, 3]}])
def test_what_is_dumped_loads_back(hosts: dict[str, list[int]]) -> None:
    graph = host_graph(hosts)
    again = load(json.dumps(dump(graph)), source="dump")
    assert again.nodes == graph.nodes
    assert [link.name for link in again.links] == [link.name for link in graph.links]
    for a, b in zip(again.links, graph.links, strict=True):
        assert a.cost.bandwidth_bytes_per_s == pytest.approx(b.cost.bandwidth_bytes_per_s)
        assert a.cost.alpha_s == pytest.approx(b.cost.alpha_s)
        assert (a.link_class, a.provenance) == (b.link_class, b.provenance)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.floats(1e-3, 1e13),
    st.floats(0, 10),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.sampled_from(Provenance),
)
def test_any_cost_and_name_survive_the_round_trip(
    bandwidth: float, alpha_s: float, name: str, provenance: Provenance
) -> None:
    assume(name.isprintable() and "->" not in name and name != "b")
    cost = LinkCost(alpha_s=alpha_s, bandwidth_bytes_per_s=bandwidth)
    nodes = [Node(name, Kind.RANK, 1), Node("b", Kind.RANK, 0)]
    links = [Link(name, "b", cost, name, provenance), Link("b", name, cost)]
    graph = LinkGraph(nodes, links, version=7)
    again = load(encode(dump(graph)).decode(), source="dump")
    assert again.digest == graph.digest
    assert again.version == 7
    assert dump(again) == dump(graph)


def test_the_digest_knows_what_differs() -> None:
    graph = load(GOOD, source="x")
    same = LinkGraph(reversed(graph.nodes), reversed(graph.links), version=9)
    assert same.digest == graph.digest
    faster = LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=26e9)
    assert graph.with_class_cost("roce", faster).digest != graph.digest


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("- 1", "must be a mapping"),
        ("{", "not valid YAML"),
        ("[" * 3000, "bad:1: nested more than 16 deep"),
        ("[ " * 200_000, "bad:1: nested more than 16 deep"),
        ("- " * 20_000, "bad:1: nested more than 16 deep"),
        ("{[1]: 2}", "bad:1: a key must be a name"),
        ("{{}: 2}", "bad:1: a key must be a name"),
        ("version: 1\n---\nversion: 1", "bad:2: more than one document"),
        ("\0", "not valid YAML"),
        ("a: \ud800", "not valid YAML"),
        ("a: &a [*a]", "bad:1: aliases (*name) are not supported"),
        (change("version: 1", "version: 2"), "bad:2: version must be 1"),
        (change("version: 1", "version: true"), "bad:2: version must be 1"),
        (change("version: 1", "version: !!int ''"), "bad:2: version must be 1"),
        (change("version: 1", "version: 1\ngraph_version: -1"), "bad:3: graph_version must be"),
        (change("version: 1", "speed: 1"), "unknown key 'speed'"),
        ("version: 1\nversion: 1", "'version' is there twice"),
        (change("g1: {kind: rank}", "g0: {kind: rank}"), "bad:5: 'g0' is there twice"),
        (change("{kind: rank}", "{kind: gpu}"), "kind must be one of"),
        (change("{kind: rank}", "{}"), "kind is missing"),
        (
            change("{kind: switch}", "{kind: switch, rank: 3}"),
            "bad:6: node 'sw': nodes of kind rank have a rank",
        ),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: 7}"), "ranks must be 0..1"),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: 0}"), "bad:5: node 'g1': rank 0 is"),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: 99999}"), "whole number up to 65535"),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: !!timestamp x}"), "whole number"),
        (change("g1: {kind: rank}", "g1->: {kind: rank}"), "bad:5: node 'g1->': a name has"),
        (change("g1: {kind: rank}", '"g\\x01": {kind: rank}'), "printable characters"),
        (change("class: roce", "class: ''"), "bad:10: link sw->g1: class must be 1 to 120"),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: 0.5}"), "whole number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: 0"), "bad:8: link g0->sw"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: -1"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: .nan"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: .inf"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: fast"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: true"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: [1]"), "single value"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: 1" + "0" * 5000), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: 1e300"), "must be positive and finite"),
        (change("bandwidth_GBps: 25, ", ""), "give bandwidth_GBps or bandwidth_gbps"),
        (change("alpha_us: 5", "alpha_us: -5"), "non-negative"),
        (change("alpha_us: 5", "alpha: 5"), "unknown key 'alpha'"),
        (change("src: g0", "src: g9"), "bad:8: link g9->sw: there is no node 'g9'"),
        (change("src: g0", "src: sw"), "bad:8: link sw->sw leads to itself"),
        (change("src: g0, ", ""), "bad:8: link: src is missing"),
        (change("src: g1", "src: g0"), "bad:9: link g0->sw is there twice"),
        (change("duplex: false", "duplex: maybe"), "duplex must be one of"),
        (change("src: g1, dst: sw", "src: g0, dst: g1"), "disconnected"),
        ("version: 1\nnodes: {s: {kind: switch}}\nlinks: []", "no node has kind rank"),
        ("version: 1\nnodes: {a: {kind: rank}, b: {kind: rank}}\nlinks: []", "disconnected"),
        ("version: 1\nlinks: []", "nodes is missing"),
        ("version: 1\nnodes: !!python/object/apply:os.system [ls]\nlinks: []", "mapping"),
        (
            "{version: 1, nodes: {s: {kind: switch}, t: {kind: switch}}, "
            "links: [{src: s, dst: t, bandwidth_GBps: 1}]}",
            "no node has kind rank",
        ),
    ],
)
def test_bad_documents_are_one_clear_line(text: str, words: str) -> None:
    with pytest.raises(GraphError) as refusal:
        load(text, source="bad")
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("bad")
    assert "\n" not in str(refusal.value)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(st.sampled_from("{}[]:,-?!&*|>#'\"% \n\tabv1.\0\u00e9")))
def test_any_noise_is_one_clear_line(text: str) -> None:
    with pytest.raises(GraphError, match=r"^noise[:0-9]*: [^\n]+$"):
        load(text, source="noise")


def test_a_million_links_are_refused_while_they_are_read() -> None:
    links = "- {}\n" * 1_000_000
    with pytest.raises(GraphError, match=r"^big:500004: more than 500000 entries$"):
        load(f"version: 1\nnodes: {{}}\nlinks:\n{links}", source="big")


def test_a_graph_of_too_many_links_is_refused() -> None:
    cost = LinkCost(alpha_s=0.0, bandwidth_bytes_per_s=1.0)
    links = [Link("a", "b", cost)] * (MAX_LINKS + 1)
    with pytest.raises(GraphError, match="500001 links, more than the 500000 allowed"):
        LinkGraph([Node("a", Kind.RANK, 0), Node("b", Kind.RANK, 1)], links)


def test_unreadable_files_are_one_clear_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(GraphError, match=str(path)):
            load_file(path)


def test_the_example_is_the_demos_graph() -> None:
    graph = load_file(Path(__file__).parents[2] / "examples" / "two_racks.yaml")
    assert graph.world_size == 4
    assert sum(node.kind is Kind.SWITCH for node in graph.nodes) == 2
