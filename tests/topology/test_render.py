"""The picture is well-formed, shows what it was given, and escapes names."""

import xml.etree.ElementTree as ElementTree

from tests.topology.graphs import both_ways, racks
from trainmesh.topology.graph import Kind, LinkGraph, Node
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


def test_names_are_escaped() -> None:
    nodes = [Node("<b>&", Kind.RANK, 0), Node('"x"', Kind.RANK, 1)]
    picture = svg(LinkGraph(nodes, both_ways("<b>&", '"x"', 1)))
    ElementTree.fromstring(picture)
    assert "<b>" not in picture


def test_no_two_boxes_lie_on_each_other() -> None:
    root = ElementTree.fromstring(svg(racks(range(16), uplink=1)))
    places = [(float(rect.get("x", 0)), float(rect.get("y", 0))) for rect in root.iter(f"{NS}rect")]
    for i, (x1, y1) in enumerate(places):
        for x2, y2 in places[i + 1 :]:
            assert abs(x1 - x2) >= 92 or abs(y1 - y2) >= 34


def test_what_is_too_large_to_draw_says_so() -> None:
    count = MAX_DRAWN_RANKS + 1
    nodes = [Node("s", Kind.SWITCH)] + [Node(f"g{i}", Kind.RANK, i) for i in range(count)]
    links = [link for i in range(count) for link in both_ways(f"g{i}", "s", 1)]
    assert "too many to draw" in svg(LinkGraph(nodes, links))


def test_table_rows_have_units() -> None:
    rows = table_rows(racks(range(2), uplink=10, per_rack=1))
    assert rows[0] == ("leaf0", "core", "ethernet", "10.000", "0.0", "declared")
