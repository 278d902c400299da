"""Small SVG charts for the report. Numbers in, an ``<svg>`` element out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["bars", "line"]

WIDTH = 860
HEIGHT = 240
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 18, 34


def line(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    unit: str,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = True,
) -> str:
    """A line over x (steps). ``marks`` are vertical lines with a label."""
    xs = [x for x, _ in points]
    ys = [y for _, y in points]
    low, high = (0.0 if from_zero else min(ys)), _ceiling(ys)
    span_x = (max(xs) - min(xs)) or 1.0
    span_y = (high - low) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - min(xs)) / span_x * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (min(y, high) - low) / span_y * (HEIGHT - TOP - BOTTOM),
        )

    path = " ".join(
        f"{'ML'[i > 0]}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(place(*p) for p in points)
    )
    parts = [*_axis_y(low, high, unit), *_axis_x(min(xs), max(xs))]
    for x, label in marks:
        at, _ = place(x, low)
        anchor = "end" if at > WIDTH / 2 else "start"
        shift = -5 if anchor == "end" else 5
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="mark" text-anchor="{anchor}" x="{at + shift:.1f}" y="{TOP + 10}">'
            f"{escape(label)}</text>"
        )
    parts.append(f'<path class="series" d="{path}"/>')
    return _svg(HEIGHT, title, parts)


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, title: str, unit: str) -> str:
    """Stacked horizontal bars: (label, ((part name, value), ...)) a row. The part's name is its
    colour class."""
    high = max((sum(value for _, value in parts) for _, parts in rows), default=0.0) or 1.0
    height = TOP + 34 * len(rows) + 8
    parts: list[str] = []
    for number, (label, stack) in enumerate(rows):
        y = TOP + 34 * number
        parts.append(f'<text text-anchor="end" x="{LEFT + 20}" y="{y + 17}">{escape(label)}</text>')
        x = float(LEFT + 28)
        for name, value in stack:
            width = value / high * (WIDTH - LEFT - 28 - RIGHT - 90)
            parts.append(
                f'<rect class="{escape(name)}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="24">'
                f"<title>{escape(name)}: {value:.3g} {escape(unit)}</title></rect>"
            )
            x += width
        total = sum(value for _, value in stack)
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 17}">{total:.3g} {escape(unit)}</text>')
    return _svg(height, title, parts)


def _ceiling(ys: Sequence[float]) -> float:
    """A top that a few outliers don't set: 1.3 times the 98th percentile, or the maximum."""
    ordered = sorted(ys)
    return min(ordered[-1], 1.3 * ordered[int(0.98 * (len(ordered) - 1))]) * 1.05 or 1.0


def _axis_y(low: float, high: float, unit: str) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        value = low + share * (high - low)
        label = f"{value:.3g} {escape(unit)}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text text-anchor="end" x="{LEFT - 6}" y="{y + 4}">{label}</text>')
    return parts


def _axis_x(first: float, last: float) -> list[str]:
    y = HEIGHT - 12
    return [
        f'<text x="{LEFT}" y="{y}">step {first:.0f}</text>',
        f'<text text-anchor="end" x="{WIDTH - RIGHT}" y="{y}">step {last:.0f}</text>',
    ]


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0f}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
