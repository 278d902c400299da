"""Topology documents: what is read, and what is refused with line and name."""

import json
from pathlib import Path

import pytest

from trainmesh.errors import GraphError
from trainmesh.topology.document import dump, load, load_file
from trainmesh.topology.graph import Kind, Provenance, host_graph

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


def change(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("- 1", "must be a mapping"),
        ("{", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("a: &a [*a]", "unknown key 'a'"),
        (change("version: 1", "version: 2"), "version must be 1"),
        (change("version: 1", "speed: 1"), "unknown key 'speed'"),
        ("version: 1\nversion: 1", "'version' is there twice"),
        (change("g1: {kind: rank}", "g0: {kind: rank}"), "bad:5: nodes: 'g0' is there twice"),
        (change("{kind: rank}", "{kind: gpu}"), "kind must be one of"),
        (change("{kind: rank}", "{}"), "kind is missing"),
        (change("{kind: switch}", "{kind: switch, rank: 3}"), "only nodes of kind rank"),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: 7}"), "ranks must be 0..1"),
        (change("g1: {kind: rank}", "g1: {kind: rank, rank: 0.5}"), "whole number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: 0"), "bad:8: link g0->sw"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: -1"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: .nan"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: .inf"), "positive finite number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: fast"), "must be a number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: true"), "must be a number"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: [1]"), "single value"),
        (change("bandwidth_GBps: 25, ", ""), "give bandwidth_GBps or bandwidth_gbps"),
        (change("alpha_us: 5", "alpha_us: -5"), "non-negative"),
        (change("alpha_us: 5", "alpha: 5"), "unknown key 'alpha'"),
        (change("src: g0", "src: g9"), "no node 'g9'"),
        (change("src: g0", "src: sw"), "leads to itself"),
        (change("src: g0, ", ""), "src is missing"),
        (change("src: g1", "src: g0"), "link g0->sw is there twice"),
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


def test_a_million_links_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmesh.topology.document.MAX_LINKS", 2)
    with pytest.raises(GraphError, match="3 links, more than the 2 allowed"):
        load(GOOD, source="big")


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
