"""The picture is well-formed, shows what it was given, and escapes names."""

import xml.etree.ElementTree as ElementTree

import pytest

from tests.topology.graphs import both_ways, direct, hgx, racks
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


def middles(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Of each node's box, by the node's name."""
    found = {}
    for group in root.iter(f"{NS}g"):
        title, rect = group.find(f"{NS}title"), group.find(f"{NS}rect")
        if title is not None and rect is not None:
            x, y, width, height = (
                float(rect.get(name, 0)) for name in ("x", "y", "width", "height")
            )
            found[title.text or ""] = (x + width / 2, y + height / 2)
    return found


def test_groups_are_shaded_in_tints_of_their_own() -> None:
    graph = racks(range(16), uplink=50, nic=100)
    groups = [[f"leaf{i}", *(f"h{4 * i + j}" for j in range(4))] for i in range(4)]
    root = ElementTree.fromstring(svg(graph, groups=groups))
    tints: dict[str, set[str]] = {}
    for group in root.iter(f"{NS}g"):
        title = group.find(f"{NS}title")
        shade = {name for name in group.get("class", "").split() if name.startswith("group")}
        if title is not None and shade:
            tints.setdefault(shade.pop(), set()).add(title.text or "")
    assert sorted(map(sorted, tints.values())) == sorted(map(sorted, groups))
    assert "4 groups" in "".join(root.itertext())


def test_rails_are_above_the_switches_inside_hosts() -> None:
    places = middles(ElementTree.fromstring(svg(hgx(2))))
    levels = {name.rstrip("0123456789"): y for name, (_, y) in places.items()}
    assert levels["rail"] < levels["nvswitch"] < levels["g"]
    hosts = [places[f"g{rank}"][0] for rank in range(16)]
    assert hosts == sorted(hosts)
    assert hosts[0] < places["nvswitch0"][0] < hosts[7]


@pytest.mark.parametrize(
    "graph",
    [
        hgx(2),
        hgx(4),
        racks(range(32), uplink=40),
        direct([(a, b, 25) for a in range(16) for b in range(a)]),
    ],
    ids=["2 hosts with rails", "4 hosts with rails", "racks", "a mesh"],
)
def test_a_label_lies_on_no_box_and_on_no_other_label(graph: LinkGraph) -> None:
    root = ElementTree.fromstring(svg(graph, bottleneck=[link.name for link in graph.links[:6]]))
    shown = [
        (float(text.get("x", 0)), float(text.get("y", 0)))
        for text in root.iter(f"{NS}text")
        if text.get("class") in ("label", "hot-text")
    ]
    assert len(shown) >= 8
    boxes = middles(root).values()
    for index, (x, y) in enumerate(shown):
        assert all(abs(x - x2) > 40 or abs(y - 4 - y2) > 20 for x2, y2 in boxes)
        assert all(abs(x - x2) > 40 or abs(y - y2) > 12 for x2, y2 in shown[:index])


def test_names_that_fit_are_shown_wherever_the_box_lies() -> None:
    graph = direct([(rank, (rank + 1) % 16, 25) for rank in range(16)])
    shown = {text.text for text in ElementTree.fromstring(svg(graph)).iter(f"{NS}text")}
    assert {f"g{rank} (r{rank})" for rank in range(16)} <= shown
