"""The picture is well-formed, shows what it was given, and escapes names."""

import xml.etree.ElementTree as ElementTree

import pytest

from tests.topology.graphs import both_ways, direct, racks
from trainmesh.topology.graph import Kind, LinkGraph, Node, host_graph
from trainmesh.topology.render import MAX_DRAWN_RANKS, svg, table_rows

NS = "{http://www.w3.org/2000/svg}"


def test_the_bottleneck_and_the_cut_are_marked() -> None:
    graph = racks(range(4), uplink=1, per_rack=2)
    picture = svg(graph, cut=["leaf0", "h0", "h1"], bottleneck=["leaf0->core"])
    root = ElementTree.fromstring(picture)
    boxes = [g for g in root.iter(f"{NS}g") if "node" in (g.get("class") or "").split()]
    assert len([g for g in boxes if g.find(f"{NS}title") is not None]) == 7
    shaded = [g for g in boxes if "cut" in g.get("class", "") and g.find(f"{NS}title") is not None]
    assert len(shaded) == 3
    hot = [e for e in root.iter(f"{NS}line") if e.get("class") == "hot"]
    titles = [title.text or "" for line in hot for title in line.iter(f"{NS}title")]
    assert len(titles) == 1
    assert "leaf0->core" in titles[0]


def test_ranks_without_switches_stand_in_a_circle() -> None:
    graph = direct([(i, (i + 1) % 8, 25) for i in range(8)])
    root = ElementTree.fromstring(svg(graph))
    heights = {rect.get("y") for rect in root.iter(f"{NS}rect")}
    assert len(heights) > 3


def test_a_rank_always_shows_its_number() -> None:
    graph = host_graph({"a-very-long-host-name.example.org": range(40)})
    shown = {text.text for text in ElementTree.fromstring(svg(graph)).iter(f"{NS}text")}
    assert {f"rank {rank}" for rank in range(40)} <= shown


def test_names_are_escaped() -> None:
    nodes = [Node("<b>&", Kind.RANK, 0), Node('"x"', Kind.RANK, 1)]
    picture = svg(LinkGraph(nodes, both_ways("<b>&", '"x"', 1)))
    ElementTree.fromstring(picture)
    assert "<b>" not in picture


@pytest.mark.parametrize(
    "graph",
    [racks(range(16), uplink=1), racks(range(64), uplink=1), direct([(0, 1, 1), (1, 2, 1)])],
    ids=["16 ranks", "64 ranks", "3 ranks without a switch"],
)
def test_no_two_boxes_lie_on_each_other(graph: LinkGraph) -> None:
    root = ElementTree.fromstring(svg(graph))
    boxes = [
        [float(rect.get(name, 0)) for name in ("x", "y", "width", "height")]
        for rect in root.iter(f"{NS}rect")
    ]
    for i, (x1, y1, width1, height1) in enumerate(boxes):
        for x2, y2, width2, height2 in boxes[i + 1 :]:
            beside = x1 + width1 <= x2 or x2 + width2 <= x1
            assert beside or y1 + height1 <= y2 or y2 + height2 <= y1


def test_what_is_too_large_to_draw_says_so() -> None:
    count = MAX_DRAWN_RANKS + 1
    nodes = [Node("s", Kind.SWITCH)] + [Node(f"g{i}", Kind.RANK, i) for i in range(count)]
    links = [link for i in range(count) for link in both_ways(f"g{i}", "s", 1)]
    assert "too many to draw" in svg(LinkGraph(nodes, links))


def test_table_rows_have_units() -> None:
    rows = table_rows(racks(range(2), uplink=10, per_rack=1))
    assert rows[0] == ("leaf0", "core", "ethernet", "10.000", "0.0", "declared")
