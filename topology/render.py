"""Draw a link graph: a self-contained SVG for the report, rows for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from html import escape

from trainmesh.topology.graph import Link, LinkGraph, Node
from trainmesh.topology.layout import (
    MARGIN,
    NODE_HEIGHT,
    NODE_WIDTH,
    Layout,
    Point,
    layout_of,
    overlap,
    room,
)

__all__ = ["MAX_DRAWN_RANKS", "svg", "table_rows"]

MAX_DRAWN_RANKS = 256
MAX_LABELLED = 256
"""Above so many lines none has its speed written on it."""
LETTER_WIDTH, LETTER_HEIGHT = 6.5, 14
"""Of a label, with room around it."""
PLACES = (0.62, 0.54, 0.7, 0.44, 0.8, 0.34, 0.5)
"""Where on a line its label may be, from the upper end: rather near the lower one, where the lines
of a switch are further apart."""
TINTS = 6
"""Of groups; neighbours in their order differ."""
LEGEND_HEIGHT = 34

# Colours are written out in every rule: viewers other than browsers know no CSS variables.
STYLE = """
.tm-graph { font: 12px system-ui, sans-serif; }
.tm-graph text { fill: #1c2330; text-anchor: middle; }
.tm-graph .label { fill: #566079; font-size: 11px; }
.tm-graph .label, .tm-graph .hot-text { paint-order: stroke; stroke: #fff;
  stroke-width: 3px; stroke-linejoin: round; }
.tm-graph .node rect { fill: #fff; stroke: #aab4c6; stroke-width: 1.5; }
.tm-graph .rank rect { fill: #e6effc; }
.tm-graph .cut rect, .tm-graph .group0 rect { fill: #fbe3b0; }
.tm-graph .group1 rect { fill: #cfeed6; }
.tm-graph .group2 rect { fill: #e6d6f7; }
.tm-graph .group3 rect { fill: #fad3d8; }
.tm-graph .group4 rect { fill: #c5ecec; }
.tm-graph .group5 rect { fill: #e2e2c0; }
.tm-graph line { stroke: #aab4c6; stroke-width: 2; }
.tm-graph line.hot { stroke: #d03238; stroke-width: 4; }
.tm-graph .hot-text { fill: #d03238; font-weight: 600; font-size: 11px; }
.tm-graph .legend text { text-anchor: start; fill: #566079; font-size: 11px; }
@media (prefers-color-scheme: dark) {
.tm-graph text { fill: #e8ecf4; }
.tm-graph .label, .tm-graph .legend text { fill: #a9b3c6; }
.tm-graph .label, .tm-graph .hot-text { stroke: #12161e; }
.tm-graph .node rect { fill: #232a37; stroke: #56617a; }
.tm-graph .rank rect { fill: #1f3557; }
.tm-graph .cut rect, .tm-graph .group0 rect { fill: #5a4613; }
.tm-graph .group1 rect { fill: #1e4a2b; }
.tm-graph .group2 rect { fill: #44306a; }
.tm-graph .group3 rect { fill: #5e2530; }
.tm-graph .group4 rect { fill: #164a4d; }
.tm-graph .group5 rect { fill: #484821; }
.tm-graph line { stroke: #56617a; }
.tm-graph line.hot { stroke: #ff6b6b; }
.tm-graph .hot-text { fill: #ff6b6b; }
}
"""


def svg(
    graph: LinkGraph,
    *,
    cut: Collection[str] = (),
    groups: Sequence[Collection[str]] = (),
    bottleneck: Collection[str] = (),
    limited: str = "the plan",
) -> str:
    """The graph with its switches above its ranks, as an ``<svg>`` element of its own.

    Args:
        cut: nodes to shade (one side of the bound's cut).
        groups: sets of nodes to shade, each in another tint (those that the bound holds apart).
        bottleneck: links (``src->dst``) to mark.
        limited: what these limit, in words.

    Returns:
        The element; above ``MAX_DRAWN_RANKS`` ranks one that says that it is too large to draw.
    """
    if graph.world_size > MAX_DRAWN_RANKS:
        text = f"{graph.world_size} ranks and {len(graph.links)} links: too many to draw"
        return _document(420, 60, [f'<text x="210" y="34">{text}</text>'], "Link graph")
    layout = layout_of(graph)
    shades = {name: f"group{i % TINTS}" for i, group in enumerate(groups) for name in group}
    shades |= dict.fromkeys(cut, "cut")
    # Labels last: none lies on a box, and no line on a label.
    parts = _lines(graph, layout, set(bottleneck))
    parts += [_box(node, layout, shades.get(node.name)) for node in graph.nodes]
    parts += _labels(graph, layout, set(bottleneck))
    keys = [("hot", f"limits {limited}")] if bottleneck else []
    keys += [("cut", "one side of the cut of the bound")] if cut else []
    keys += [("group0", f"{len(groups)} groups that the bound holds apart")] if groups else []
    parts += _legend(layout.height, keys)
    title = f"Link graph: {graph.world_size} ranks, {len(graph.links)} directed links"
    return _document(layout.width, layout.height + LEGEND_HEIGHT, parts, title)


def table_rows(graph: LinkGraph) -> list[tuple[str, str, str, str, str, str]]:
    """(from, to, class, bandwidth in GB/s, alpha in us, where the cost comes from) a link."""
    return [
        (
            link.src,
            link.dst,
            link.link_class,
            f"{link.cost.bandwidth_bytes_per_s / 1e9:.3f}",
            f"{link.cost.alpha_s * 1e6:.1f}",
            link.provenance.name.lower(),
        )
        for link in graph.links
    ]


def _document(width: float, height: float, parts: list[str], title: str) -> str:
    return (
        f'<svg class="tm-graph" xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'style="max-width:100%;height:auto"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>"
    )


def _pairs(graph: LinkGraph) -> dict[tuple[str, str], list[Link]]:
    """The links between two nodes, of both directions: they are one line."""
    pairs: dict[tuple[str, str], list[Link]] = defaultdict(list)
    for link in graph.links:
        first, second = sorted((link.src, link.dst))
        pairs[first, second].append(link)
    return pairs


def _lines(graph: LinkGraph, layout: Layout, hot: set[str]) -> list[str]:
    """Those of ``hot`` links above the others."""
    lines = sorted(
        (any(link.name in hot for link in links), number, ends, links)
        for number, (ends, links) in enumerate(_pairs(graph).items())
    )
    return [
        _line((layout.places[first], layout.places[second]), links, is_hot)
        for is_hot, _, (first, second), links in lines
    ]


def _labels(graph: LinkGraph, layout: Layout, hot: set[str]) -> list[str]:
    """The speed of each line's slower direction where there is room for it, those of ``hot`` links
    first."""
    pairs = _pairs(graph)
    if len(pairs) > MAX_LABELLED:
        return []
    taken = [room(layout.places[node.name], layout.width_of(node)) for node in graph.nodes]
    marked = [
        (any(link.name in hot for link in links), ends, links) for ends, links in pairs.items()
    ]
    labels = []
    for is_hot, (first, second), links in sorted(marked, key=lambda line: not line[0]):
        text = _speed(min(links, key=lambda link: link.cost.bandwidth_bytes_per_s))
        for x, y in _on_line(layout.places[first], layout.places[second]):
            place = room((x, y), LETTER_WIDTH * len(text), LETTER_HEIGHT)
            if not any(overlap(place, other) for other in taken):
                taken.append(place)
                kind = "hot-text" if is_hot else "label"
                labels.append(f'<text class="{kind}" x="{x:.1f}" y="{y + 4:.1f}">{text}</text>')
                break
    return labels


def _on_line(one: Point, other: Point) -> Iterator[Point]:
    (x1, y1), (x2, y2) = sorted((one, other), key=lambda point: point[1])
    for share in PLACES:
        yield x1 + share * (x2 - x1), y1 + share * (y2 - y1)


def _line(ends: tuple[Point, Point], links: list[Link], is_hot: bool) -> str:
    (x1, y1), (x2, y2) = ends
    tip = "; ".join(f"{link.name}: {_speed(link)}, {link.link_class}" for link in links)
    kind = ' class="hot"' if is_hot else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{kind}>'
        f"<title>{escape(tip)}</title></line>"
    )


def _speed(link: Link) -> str:
    return f"{link.cost.bandwidth_bytes_per_s / 1e9:.3g} GB/s"


def _box(node: Node, layout: Layout, shade: str | None) -> str:
    x, y = layout.places[node.name]
    width = layout.width_of(node)
    classes = " ".join(["node", node.kind.value, *([shade] if shade else [])])
    return (
        f'<g class="{classes}"><title>{escape(node.name)}</title>'
        f'<rect x="{x - width / 2:.1f}" y="{y - NODE_HEIGHT / 2:.1f}" width="{width}" '
        f'height="{NODE_HEIGHT}" rx="7"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}">{escape(_label(node, width))}</text></g>'
    )


def _label(node: Node, width: float) -> str:
    """What fits: a rank's number at least, else both ends of the name."""
    if node.rank is not None:
        long = f"{node.name} (r{node.rank})"
        return long if len(long) <= 13 and width == NODE_WIDTH else f"rank {node.rank}"[-7:]
    return node.name if len(node.name) <= 13 else f"{node.name[:7]}\u2026{node.name[-4:]}"


def _legend(height: float, keys: Sequence[tuple[str, str]]) -> list[str]:
    """A line or a box of each class, and what it means."""
    x, y = float(MARGIN), height + LEGEND_HEIGHT / 2
    parts = ['<g class="legend">']
    for kind, text in keys:
        if kind == "hot":
            parts.append(f'<line class="hot" x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}"/>')
        else:
            box = f'<rect x="{x}" y="{y - 8}" width="26" height="16" rx="4"/>'
            parts.append(f'<g class="node {kind}">{box}</g>')
        parts.append(f'<text x="{x + 32}" y="{y + 4}">{escape(text)}</text>')
        x += 48 + LETTER_WIDTH * len(text)
    return [*parts, "</g>"]
