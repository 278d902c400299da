"""Draw a link graph: a self-contained SVG for the report, rows for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from html import escape

import networkx as nx

from trainmesh.topology.graph import Kind, Link, LinkGraph, Node

__all__ = ["MAX_DRAWN_RANKS", "svg", "table_rows"]

MAX_DRAWN_RANKS = 256
ROW_HEIGHT = 110
NODE_WIDTH = 92
NODE_HEIGHT = 34
MARGIN = 24
LEGEND_HEIGHT = 34

STYLE = """
.tm-graph { font: 12px system-ui, sans-serif; --ink: #1c2330; --soft: #66718a; --node: #fff;
  --line: #aab4c6; --hot: #d03238; --cut: #fdf0d5; --rank: #e6effc; }
@media (prefers-color-scheme: dark) { .tm-graph { --ink: #e8ecf4; --soft: #98a3b8;
  --node: #232a37; --line: #56617a; --hot: #ff6b6b; --cut: #4a3b14; --rank: #1f3557; } }
.tm-graph text { fill: var(--ink); text-anchor: middle; }
.tm-graph .label { fill: var(--soft); font-size: 11px; }
.tm-graph .node rect { fill: var(--node); stroke: var(--line); stroke-width: 1.5; }
.tm-graph .rank rect { fill: var(--rank); }
.tm-graph .cut rect { fill: var(--cut); }
.tm-graph line { stroke: var(--line); stroke-width: 2; }
.tm-graph line.hot { stroke: var(--hot); stroke-width: 4; }
.tm-graph .hot-text { fill: var(--hot); font-weight: 600; font-size: 11px; }
.tm-graph .legend text { text-anchor: start; fill: var(--soft); font-size: 11px; }
"""


def svg(graph: LinkGraph, *, cut: Collection[str] = (), bottleneck: Collection[str] = ()) -> str:
    """The graph with its switches above its ranks, as an ``<svg>`` element of its own.

    Args:
        cut: nodes to shade (one side of the bound's cut).
        bottleneck: links (``src->dst``) to mark.

    Returns:
        The element; above ``MAX_DRAWN_RANKS`` ranks one that says that it is too large to draw.
    """
    if graph.world_size > MAX_DRAWN_RANKS:
        text = f"{graph.world_size} ranks and {len(graph.links)} links: too many to draw"
        return _document(420, 60, [f'<text x="210" y="34">{text}</text>'], "Link graph")
    places, width, height = _layout(graph)
    parts = _lines(graph, places, set(bottleneck))
    parts += [_box(node, places[node.name], node.name in cut) for node in graph.nodes]
    parts += _legend(height, has_cut=bool(cut), has_bottleneck=bool(bottleneck))
    title = f"Link graph: {graph.world_size} ranks, {len(graph.links)} directed links"
    return _document(width, height + LEGEND_HEIGHT, parts, title)


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


def _layout(graph: LinkGraph) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Centre of each node. A node's row is its distance from the nearest rank; a row is in the
    order of the mean place of what hangs below, so that lines seldom cross."""
    undirected = graph.digraph().to_undirected()
    ranks = [graph.rank_node(rank) for rank in range(graph.world_size)]
    distance = nx.multi_source_dijkstra_path_length(undirected, set(ranks), weight=None)
    rows: dict[int, list[str]] = defaultdict(list)
    for node in graph.nodes:
        rows[int(distance.get(node.name, 0))].append(node.name)
    order = {name: float(index) for index, name in enumerate(_by_parent(graph, ranks))}
    for row in sorted(rows):
        if row > 0:
            for name in rows[row]:
                below = [order[other] for other in undirected[name] if other in order]
                order[name] = sum(below) / len(below) if below else 0.0
    widest = max(len(names) for names in rows.values())
    step = NODE_WIDTH + 18
    width = max(420.0, widest * step + 2 * MARGIN)
    height = (max(rows) + 1) * ROW_HEIGHT - ROW_HEIGHT / 2 + 2 * MARGIN
    places = {}
    for row, names in rows.items():
        names.sort(key=lambda name: order[name])
        room = (width - 2 * MARGIN) / len(names)
        y = height - MARGIN - NODE_HEIGHT / 2 - row * ROW_HEIGHT
        for index, name in enumerate(names):
            places[name] = (MARGIN + room * (index + 0.5), y)
    return places, width, height


def _by_parent(graph: LinkGraph, ranks: list[str]) -> list[str]:
    """Ranks, those of a switch together."""
    kinds = {node.name: node.kind for node in graph.nodes}
    parent: dict[str, str] = {}
    for link in graph.links:
        if kinds[link.src] is Kind.RANK and kinds[link.dst] is not Kind.RANK:
            parent[link.src] = min(parent.get(link.src, link.dst), link.dst)
    return sorted(ranks, key=lambda name: (parent.get(name, ""), ranks.index(name)))


def _lines(graph: LinkGraph, places: dict[str, tuple[float, float]], hot: set[str]) -> list[str]:
    """One line for both directions of a link, labelled once where all of a pair's links agree."""
    pairs: dict[tuple[str, str], list[Link]] = defaultdict(list)
    for link in graph.links:
        first, second = sorted((link.src, link.dst))
        pairs[first, second].append(link)
    lines, labels = [], []
    for (first, second), links in pairs.items():
        (x1, y1), (x2, y2) = places[first], places[second]
        is_hot = any(link.name in hot for link in links)
        tip = "; ".join(f"{link.name}: {_speed(link)}, {link.link_class}" for link in links)
        kind = ' class="hot"' if is_hot else ""
        lines.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{kind}>'
            f"<title>{escape(tip)}</title></line>"
        )
        slowest = min(links, key=lambda link: link.cost.bandwidth_bytes_per_s)
        style = "hot-text" if is_hot else "label"
        # Nearer to the lower end, where the lines of a switch are further apart.
        share = 0.62 if y2 > y1 else 0.38
        x, y = x1 + share * (x2 - x1), y1 + share * (y2 - y1) - (6 if y1 == y2 else 0)
        labels.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{_speed(slowest)}</text>')
    return lines + (labels if len(labels) <= 64 else [])


def _speed(link: Link) -> str:
    return f"{link.cost.bandwidth_bytes_per_s / 1e9:.3g} GB/s"


def _box(node: Node, place: tuple[float, float], in_cut: bool) -> str:
    x, y = place
    classes = " ".join(["node", node.kind.value, *(["cut"] if in_cut else [])])
    shown = node.name if len(node.name) <= 13 else f"{node.name[:12]}\u2026"
    label = f"{shown} (r{node.rank})" if node.rank is not None and len(shown) < 9 else shown
    return (
        f'<g class="{classes}"><title>{escape(node.name)}</title>'
        f'<rect x="{x - NODE_WIDTH / 2:.1f}" y="{y - NODE_HEIGHT / 2:.1f}" width="{NODE_WIDTH}" '
        f'height="{NODE_HEIGHT}" rx="7"/><text x="{x:.1f}" y="{y + 4:.1f}">{escape(label)}</text>'
        "</g>"
    )


def _legend(height: float, *, has_cut: bool, has_bottleneck: bool) -> list[str]:
    y = height + LEGEND_HEIGHT / 2
    parts = ['<g class="legend">']
    x = MARGIN
    if has_bottleneck:
        parts.append(f'<line class="hot" x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}"/>')
        parts.append(f'<text x="{x + 32}" y="{y + 4}">limits the plan in force</text>')
        x += 190
    if has_cut:
        parts.append(
            f'<g class="node cut"><rect x="{x}" y="{y - 8}" width="26" height="16" rx="4"/></g>'
        )
        parts.append(f'<text x="{x + 32}" y="{y + 4}">one side of the cut of the bound</text>')
    return [*parts, "</g>"]
