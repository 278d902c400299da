"""Draw a link graph: a self-contained SVG for the report, rows for a terminal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from html import escape
from typing import NamedTuple, TypeAlias

import networkx as nx

from trainmesh.topology.graph import Link, LinkGraph, LinkHealth, Node
from trainmesh.units import count

__all__ = ["MAX_DRAWN_RANKS", "svg", "table_rows"]

MAX_DRAWN_RANKS = 256
"""Above, a drawing shows nothing."""
ROW_HEIGHT = 110
NODE_WIDTH = 92
NODE_HEIGHT = 34
MANY_RANKS = 16
"""Above, ranks are drawn smaller."""
SMALL_WIDTH = 46
"""Of a rank where there are more than MANY_RANKS; only its number is shown."""
GAP = 14
MAX_LABELS = 64
"""Of links; more cover each other."""
MARGIN = 24
LEGEND_HEIGHT = 34
"""In pixels, as are all sizes here."""

# Colours are written out in every rule: viewers other than browsers know no CSS variables.
STYLE = """
.tm-graph { font: 12px system-ui, sans-serif; }
.tm-graph text { fill: #1c2330; text-anchor: middle; }
.tm-graph .label { fill: #566079; font-size: 11px; }
.tm-graph .label, .tm-graph .hot-text { paint-order: stroke; stroke: #fff;
  stroke-width: 3px; stroke-linejoin: round; }
.tm-graph .node rect { fill: #fff; stroke: #aab4c6; stroke-width: 1.5; }
.tm-graph .rank rect { fill: #e6effc; }
.tm-graph .cut rect { fill: #fbe3b0; }
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
.tm-graph .cut rect { fill: #5a4613; }
.tm-graph line { stroke: #56617a; }
.tm-graph line.hot { stroke: #ff6b6b; }
.tm-graph .hot-text { fill: #ff6b6b; }
}
"""


def svg(
    graph: LinkGraph,
    *,
    cut: Collection[str] = (),
    bottleneck: Collection[str] = (),
    limited: str = "the plan",
) -> str:
    """The graph with its switches above its ranks, as an ``<svg>`` element of its own.

    Args:
        cut: nodes to shade (one side of the bound's cut).
        bottleneck: links (``src->dst``) to mark.
        limited: what these limit, in words.

    Returns:
        The element; above ``MAX_DRAWN_RANKS`` ranks one that says that it is too large to draw.
    """
    ranks, links = count(graph.world_size, "rank"), count(len(graph.links), "directed link")
    if graph.world_size > MAX_DRAWN_RANKS:
        text = f"{ranks} and {links}: too many to draw"
        return _document(420, 60, [f'<text x="210" y="34">{text}</text>'], "Link graph")
    layout = _layout(graph)
    parts = _lines(graph, layout, set(bottleneck))
    parts += [_box(node, layout, node.name in cut) for node in graph.nodes]
    words = f"limits {limited}" if bottleneck else ""
    parts += _legend(layout.height, words, has_cut=bool(cut))
    title = f"Link graph: {ranks}, {links}"
    return _document(layout.width, layout.height + LEGEND_HEIGHT, parts, title)


def table_rows(graph: LinkGraph) -> list[tuple[str, str, str, str, str, str]]:
    """(from, to, class, bandwidth in GB/s, alpha in us, where the cost comes from and
    what is wrong with the link) a link."""
    return [
        (
            link.src,
            link.dst,
            link.link_class,
            f"{link.cost.bandwidth_bytes_per_s / 1e9:.3f}",
            f"{link.cost.alpha_s * 1e6:.1f}",
            link.provenance.name.lower()
            + ("" if link.health is LinkHealth.HEALTHY else f", {link.health.value}"),
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


_Ends: TypeAlias = tuple[tuple[float, float], tuple[float, float]]


class _Layout(NamedTuple):
    """Centre of each node by name, the size of the whole, and the width of a rank's box."""

    places: dict[str, tuple[float, float]]
    width: float
    height: float
    rank_width: float


def _layout(graph: LinkGraph) -> _Layout:
    """Rows: a node's is its distance from the nearest rank; a row is in the order of the mean
    place of what hangs below, so that lines seldom cross. Without switches, a circle."""
    rank_width = NODE_WIDTH if graph.world_size <= MANY_RANKS else SMALL_WIDTH
    undirected = graph.digraph().to_undirected()
    ranks = [graph.rank_node(rank) for rank in range(graph.world_size)]
    if len(ranks) == len(graph.nodes) > 2:
        return _circle(ranks, rank_width)
    distance = nx.multi_source_dijkstra_path_length(undirected, set(ranks), weight=None)
    rows: dict[int, list[str]] = defaultdict(list)
    for node in graph.nodes:
        rows[int(distance.get(node.name, 0))].append(node.name)
    order = {name: float(index) for index, name in enumerate(_by_parent(graph))}
    for row in sorted(rows):
        if row > 0:
            for name in rows[row]:
                below = [order[other] for other in undirected[name] if other in order]
                order[name] = sum(below) / len(below) if below else 0.0
    widths = {row: rank_width if row == 0 else NODE_WIDTH for row in rows}
    widest = max(len(names) * (widths[row] + GAP) for row, names in rows.items())
    width = max(420.0, widest + 2.0 * MARGIN)
    height = (max(rows) + 1) * ROW_HEIGHT - ROW_HEIGHT / 2 + 2 * MARGIN
    places = {}
    for row, names in rows.items():
        names.sort(key=lambda name: order[name])
        room = (width - 2 * MARGIN) / len(names)
        y = height - MARGIN - NODE_HEIGHT / 2 - row * ROW_HEIGHT
        for index, name in enumerate(names):
            places[name] = (MARGIN + room * (index + 0.5), y)
    return _Layout(places, width, height, rank_width)


def _circle(ranks: list[str], rank_width: float) -> _Layout:
    radius = max(150.0, len(ranks) * (rank_width + GAP) / (2 * math.pi))
    across = 1.5 * radius
    middle_x, middle_y = MARGIN + NODE_WIDTH / 2 + across, MARGIN + NODE_HEIGHT / 2 + radius
    places = {}
    for index, name in enumerate(ranks):
        turn = 2 * math.pi * index / len(ranks)
        places[name] = (middle_x + across * math.sin(turn), middle_y - radius * math.cos(turn))
    return _Layout(places, 2 * middle_x, 2 * middle_y, rank_width)


def _by_parent(graph: LinkGraph) -> list[str]:
    """Names of the ranks, those that hang on the same switch (the fastest one) together."""
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    ranks = {graph.rank_node(rank): rank for rank in range(graph.world_size)}
    parents: dict[str, tuple[float, int]] = {}
    for link in graph.links:
        if link.src in ranks and link.dst not in ranks:
            found = (-link.cost.bandwidth_bytes_per_s, places[link.dst])
            parents[link.src] = min(found, parents.get(link.src, found))
    return sorted(ranks, key=lambda name: (parents.get(name, (0.0, -1))[1], ranks[name]))


def _lines(graph: LinkGraph, layout: _Layout, hot: set[str]) -> list[str]:
    """One line for both directions of a link. Labels show the slower direction, and are left out
    where they would lie on each other."""
    ranks = {graph.rank_node(rank) for rank in range(graph.world_size)}
    pairs: dict[tuple[str, str], list[Link]] = defaultdict(list)
    for link in graph.links:
        first, second = sorted((link.src, link.dst))
        pairs[first, second].append(link)
    lines, labels = [], []
    for (first, second), links in pairs.items():
        is_hot = any(link.name in hot for link in links)
        ends = layout.places[first], layout.places[second]
        lines.append(_line(ends, links, is_hot))
        if layout.rank_width == NODE_WIDTH or not {first, second} & ranks:
            labels.append(_line_label(ends, links, is_hot))
    return lines + (labels if len(labels) <= MAX_LABELS else [])


def _line(ends: _Ends, links: list[Link], is_hot: bool) -> str:
    (x1, y1), (x2, y2) = ends
    tip = "; ".join(f"{link.name}: {_speed(link)}, {link.link_class}" for link in links)
    kind = ' class="hot"' if is_hot else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{kind}>'
        f"<title>{escape(tip)}</title></line>"
    )


def _line_label(ends: _Ends, links: list[Link], is_hot: bool) -> str:
    (x1, y1), (x2, y2) = ends
    slowest = min(links, key=lambda link: link.cost.bandwidth_bytes_per_s)
    style = "hot-text" if is_hot else "label"
    # Nearer to the lower end, where the lines of a switch are further apart.
    share = 0.62 if y2 > y1 else 0.38
    x, y = x1 + share * (x2 - x1), y1 + share * (y2 - y1) - (6 if y1 == y2 else 0)
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{_speed(slowest)}</text>'


def _speed(link: Link) -> str:
    return f"{link.cost.bandwidth_bytes_per_s / 1e9:.3g} GB/s"


def _box(node: Node, layout: _Layout, in_cut: bool) -> str:
    x, y = layout.places[node.name]
    width = NODE_WIDTH if node.rank is None else layout.rank_width
    classes = " ".join(["node", node.kind.value, *(["cut"] if in_cut else [])])
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


def _legend(height: float, hot: str, *, has_cut: bool) -> list[str]:
    y = height + LEGEND_HEIGHT / 2
    parts = ['<g class="legend">']
    x = MARGIN
    if hot:
        parts.append(f'<line class="hot" x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}"/>')
        parts.append(f'<text x="{x + 32}" y="{y + 4}">{escape(hot)}</text>')
        x += 150
    if has_cut:
        parts.append(
            f'<g class="node cut"><rect x="{x}" y="{y - 8}" width="26" height="16" rx="4"/></g>'
        )
        parts.append(f'<text x="{x + 32}" y="{y + 4}">one side of the cut of the bound</text>')
    return [*parts, "</g>"]
