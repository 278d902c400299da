"""A picture of how something grows: seconds against ranks, both by powers of ten."""

import math
from collections.abc import Mapping
from html import escape

__all__ = ["svg"]

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 226, 24, 48
COLOURS = ("#2563c9", "#1b8a5a", "#c2571a", "#8a3fb0")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1c2330; }
.grid { stroke: #d9dfe9; } .aim { stroke: #d03238; stroke-width: 2; }
path { fill: none; stroke-width: 2; }
@media (prefers-color-scheme: dark) { text { fill: #e8ecf4; } .grid { stroke: #3a4457; } }
"""


def svg(curves: Mapping[str, Mapping[int, float]], aims_s: Mapping[int, float]) -> str:
    """One line for each curve (ranks to seconds), and a mark at each aim."""
    points = [item for curve in curves.values() for item in curve.items()]
    ranks = sorted({r for r, _ in points})
    decades = range(
        math.floor(math.log10(min(s for _, s in points))),
        math.ceil(math.log10(max([*(s for _, s in points), *aims_s.values()]))) + 1,
    )

    def x(count: int) -> float:
        span = math.log2(ranks[-1] / ranks[0]) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(count / ranks[0]) / span

    def y(seconds: float) -> float:
        share = (math.log10(seconds) - decades[0]) / (decades[-1] - decades[0])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [f"<style>{STYLE}</style>"]
    for decade in decades:
        at = y(10.0**decade)
        parts.append(_line("grid", LEFT, WIDTH - RIGHT, at))
        parts.append(_text(LEFT - 8, at + 4, f"{10.0**decade:g} s", "end"))
    for count in ranks:
        parts.append(_text(x(count), HEIGHT - BOTTOM + 20, str(count), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "ranks", "middle"))
    for count, aim_s in aims_s.items():
        if count in ranks:
            parts.append(_line("aim", x(count) - 9, x(count) + 9, y(aim_s)))
            parts.append(_text(x(count), y(aim_s) - 6, f"{aim_s:g} s", "middle"))
    key = WIDTH - RIGHT + 36
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x(count), y(seconds)) for count, seconds in sorted(curve.items())]
        way = " L".join(f"{across:.1f} {at:.1f}" for across, at in places)
        parts.append(f'<path d="M{way}" stroke="{colour}"/>')
        for across, at in (*places, (key, TOP + 18 * number)):
            parts.append(f'<circle cx="{across:.1f}" cy="{at:.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(key + 10, TOP + 18 * number + 4, name, "start"))
    last = TOP + 18 * len(curves)
    parts.append(_line("aim", key - 8, key + 6, last))
    parts.append(_text(key + 10, last + 4, "aim", "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{WIDTH}" height="{HEIGHT}"><title>Time for bound and plan</title>'
        f"{''.join(parts)}</svg>\n"
    )


def _line(kind: str, begin: float, end: float, at: float) -> str:
    return f'<line class="{kind}" x1="{begin:.1f}" x2="{end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'


def _text(across: float, at: float, text: str, anchor: str) -> str:
    return f'<text x="{across:.1f}" y="{at:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
