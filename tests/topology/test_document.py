"""Topology documents: what is read, and what is refused with line and name."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.topology.graphs import random_graphs
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
    st.floats(2, 1e13),
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
        ("[" * 1001 + "]" * 1001, "bad:1: nested more than 16 deep"),
        ("version: 1\nnodes:\n- {a: " + "[" * 5000, "bad:3: nested more than 16 deep"),
        ("version: 1\nnodes: " + "[" * 14 + "\n" * 9 + "[" * 5000, "bad:11: nested more than 16"),
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
        (change("bandwidth_GBps: 25", "bandwidth_GBps: 1e-309"), "at least 1 B/s"),
        (change("bandwidth_GBps: 25", "bandwidth_GBps: 9e-10"), "at least 1 B/s"),
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


BAD_JSON = json.dumps(
    {
        "version": 1,
        "nodes": {"g0": {"kind": "rank"}, "g1": {"kind": "rank"}, "sw": {"kind": "switch"}},
        "links": [
            {"src": "g0", "dst": "sw", "bandwidth_GBps": 25.5, "alpha_us": 5},
            {"src": "g1", "dst": "sw", "bandwidth_gbps": 100, "duplex": True},
        ],
    },
    indent="\t",
)
"""Good until a test changes it."""


def test_json_is_read_as_json() -> None:
    for text in (BAD_JSON, "\ufeff" + BAD_JSON.replace("\n", "\r\n"), f"\n {BAD_JSON}\n"):
        graph = load(text, source="x")
        assert graph.link("sw->g0").cost.bandwidth_bytes_per_s == 25.5e9
        assert graph.link("sw->g1").cost.bandwidth_bytes_per_s == 12.5e9
    named = BAD_JSON.replace("g0", r"\ud83d\ude80 \u00e9\"\/")
    assert load(named, source="x").rank_node(0) == '\U0001f680 \u00e9"/'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("25.5", "1e400", "bad:18: link g0->sw: bandwidth_GBps must be a positive finite number"),
        ("25.5", "NaN", "bad:18: link g0->sw: bandwidth_GBps must be a positive finite number"),
        ("25.5", "-Infinity", "bad:18: link g0->sw: bandwidth_GBps must be a positive finite"),
        ("25.5", "-0", "bad:18: link g0->sw: bandwidth_GBps must be a positive finite number"),
        ("25.5", "1" + "0" * 5000, "bad:18: link g0->sw: bandwidth_GBps must be a positive"),
        ("25.5", "null", "must be a positive finite number, not 'null'"),
        ("25.5", "[25.5]", "bad:18: link g0->sw: bandwidth_GBps must be a single value"),
        ("25.5", "25.5]", "bad:18: not valid YAML: "),
        ('"alpha_us": 5', '"alpha_us": -1', "bad:19: link g0->sw: alpha_us must be"),
        ('"alpha_us"', '"latency"', "bad:19: link: unknown key 'latency'; known are src, dst"),
        ('"version": 1', '"version": 1.0', "bad:2: version must be 1"),
        ('"version": 1', '"version": true', "bad:2: version must be 1"),
        ('"version": 1', '"version": 1' + "0" * 9999, "bad:2: version must be 1"),
        ('"src": "g1"', '"src": "g0"', "bad:21: link g0->sw is there twice"),
        ('"src": "g1"', '"src": "g7"', "bad:21: link g7->sw: there is no node 'g7'"),
        ('"src": "g1"', '"src": "g1", "src": "g1"', "bad:22: 'src' is there twice"),
        ('"g1": {', '"g0": {', "bad:7: 'g0' is there twice"),
        ('"kind": "switch"', '"kind": "hub"', "bad:11: node 'sw': kind must be one of rank,"),
        ('"kind": "switch"', '"kind": "switch", "rank": 2', "bad:10: node 'sw': nodes of kind"),
        ('"links": [', '"links": {"a": [', "not valid"),
        ('"links": [', '"links": [3,', "bad:14: link must be a mapping"),
        ('"duplex": true', '"duplex": 1', "bad:25: link g1->sw: duplex must be one of true, false"),
        ('"duplex": true', '"duplex": false', "bad:7: no link leads to rank 'g1': the graph is"),
        ('"version": 1', '"version": ' + "[" * 20 + "]" * 20, "bad:2: version must be 1"),
        ('"version": 1', '"version": ' + "[" * 9999, "bad:2: nested more than 16 deep"),
        ('"g1"', '"g\\ud800"', "printable characters"),
    ],
)
def test_json_errors_have_their_line(old: str, new: str, words: str) -> None:
    assert old in BAD_JSON
    with pytest.raises(GraphError, match=re.escape(words)) as refusal:
        load(BAD_JSON.replace(old, new, 1), source="bad")
    assert "\n" not in str(refusal.value)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(random_graphs())
def test_a_graph_is_the_same_from_json_and_from_yaml(graph: LinkGraph) -> None:
    document = dump(graph)
    texts = [
        encode(document).decode(),
        json.dumps(document, indent=1),
        yaml.safe_dump(document, sort_keys=False),
        yaml.safe_dump(document, default_flow_style=True, sort_keys=False),
    ]
    for text in texts:
        again = load(text, source="x")
        assert again.digest == graph.digest
        assert again.nodes == graph.nodes or text is texts[0]
        assert dump(again) == document or text is texts[0]


def numbered_lower(error: str, lines: int) -> str:
    return re.sub(r"(?<=^x:)\d+", lambda match: str(int(match[0]) - lines), error)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.data())
def test_json_and_yaml_agree_on_what_is_wrong(data: st.DataObject) -> None:
    """A comment makes it YAML, one line longer."""
    text = BAD_JSON.replace("\t", " ")
    for _ in range(data.draw(st.integers(1, 2))):
        words = [match.span() for match in re.finditer(r'"\w+"|[\d.]+|true|[{}\[\],:]', text)]
        (start, end), (first, last) = (data.draw(st.sampled_from(words)) for _ in range(2))
        text = text[:start] + text[first:last] + text[end:]
    outcomes = []
    for more, content in ((0, text), (1, f"# YAML\n{text}")):
        try:
            outcomes.append(load(content, source="x").digest)
        except GraphError as error:
            line = numbered_lower(str(error), more)
            outcomes.append("not valid" if "not valid" in line else line)
    assert outcomes[0] == outcomes[1]


def test_ranks_and_switches_without_links_are_named() -> None:
    nodes = "".join(f"  g{i}: {{kind: rank}}\n" for i in range(7))
    pair = "links:\n  - {src: g0, dst: g1, bandwidth_GBps: 1}\n"
    with pytest.raises(GraphError) as refusal:
        load(f"version: 1\nnodes:\n{nodes}{pair}", source="x")
    words = "x:5: no link leads to rank 'g2' and 4 more ('g3', 'g4', 'g5', ...)"
    assert str(refusal.value) == f"{words}: the graph is disconnected"
    nodes = "  g0: {kind: rank}\n  g1: {kind: rank}\n  s: {kind: switch}\n  t: {kind: switch}\n"
    cycle = f"{pair}  - {{src: s, dst: t, bandwidth_GBps: 1}}\n"
    with pytest.raises(GraphError, match=r"^x:5: no rank is linked to node 's' and 1 more \('t'\)"):
        load(f"version: 1\nnodes:\n{nodes}{cycle}", source="x")
    one_way = f"{pair[:-2]}, duplex: false}}\n"
    with pytest.raises(GraphError, match=r"^x:3: no link leads to rank 'g0': the graph"):
        load(f"version: 1\nnodes:\n{nodes}{one_way}", source="x")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("version: 1\nnodes: {}\nlinks:\n" + "- {}\n" * 1_000_000, 500004),
        ('{"links": [\n' + '{"src":1},\n' * 1_000_000 + "{}]}", 500002),
        ("{links: [\n" + "1,\n" * 1_000_000 + "]}", 500002),
        ('{"links": [' + "1," * 7_000_000 + "1]}", 1),
    ],
    ids=["yaml", "json", "flow", "numbers"],
)
def test_a_million_links_are_refused_while_they_are_read(text: str, line: int) -> None:
    with pytest.raises(GraphError, match=rf"^big:{line}: more than 500000 entries$"):
        load(text, source="big")


def test_values_are_limited_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmesh.topology.document.text.MAX_VALUES", 12)
    with pytest.raises(GraphError, match=r"^bad:8: more than 12 values$"):
        load(GOOD, source="bad")
    with pytest.raises(GraphError, match=r"^bad:17: more than 12 values$"):
        load(BAD_JSON, source="bad")


def test_links_count_by_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmesh.topology.document.format.MAX_LINKS", 3)
    with pytest.raises(GraphError, match=r"^bad:10: more than the 3 links allowed, counted by"):
        load(GOOD, source="bad")


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


def test_a_link_in_quarantine_is_kept_but_not_planned_with() -> None:
    text = """
version: 1
nodes: {a: {kind: rank}, b: {kind: rank}, s: {kind: switch}}
links:
  - {src: a, dst: b, bandwidth_GBps: 10, health: quarantined}
  - {src: a, dst: s, bandwidth_GBps: 1, health: degraded}
  - {src: s, dst: b, bandwidth_GBps: 1}
"""
    graph = load(text, source="here")
    assert load(json.dumps(dump(graph)), source="again").digest == graph.digest
    assert [link.name for link in graph.usable().links] == ["a->s", "s->a", "s->b", "b->s"]
    alone = load(text.replace("degraded", "quarantined"), source="here")
    with pytest.raises(GraphError, match="without the links in quarantine: no path from a to b"):
        alone.usable()
    with pytest.raises(GraphError, match=r"here:5: link a->b: health must be one of"):
        load(text.replace("quarantined", "ill"), source="here")
