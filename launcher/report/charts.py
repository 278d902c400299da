"""Charts for the report: numbers in, HTML with inline SVG out.

Only shapes are drawn in SVG and stretched to the width at hand; every word is HTML, so that it
keeps its size on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

__all__ = ["Bar", "BarPart", "bars", "line"]

MAX_POINTS = 1_000
"""More than the pixels of a chart's width show nothing more."""
SMOOTH_OVER = 15
"""Points around each one that its smoothed value is taken from."""
HEIGHT = 200
"""In pixels."""


@dataclass(frozen=True)
class BarPart:
    """A piece of a bar; ``kind`` is its CSS class, ``tip`` what a pointer on it shows."""

    kind: str
    value: float
    tip: str


@dataclass(frozen=True)
class Bar:
    """One row: a label, the pieces from left to right, and the text at its end."""

    label: str
    parts: tuple[BarPart, ...]
    text: str


def bars(rows: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars on one scale from zero."""
    high = max((sum(part.value for part in row.parts) for row in rows), default=0.0) or 1.0
    return (
        f'<div class="bars" role="img" aria-label="{escape(title)}">'
        f"{''.join(_bar(row, high) for row in rows)}</div>"
    )


def _bar(row: Bar, high: float) -> str:
    x, rects = 0.0, []
    for part in row.parts:
        width = 100 * part.value / high
        rects.append(
            f'<rect class="{part.kind}" x="{x:.3f}%" width="{width:.3f}%" height="100%">'
            f"<title>{escape(part.tip)}</title></rect>"
        )
        x += width
    return (
        f'<span class="bar-label">{escape(row.label)}</span><svg class="bar">{"".join(rects)}</svg>'
        f'<span class="bar-text">{escape(row.text)}</span>'
    )


def line(
    points: Sequence[tuple[float, float]],
    *,
    title: str,
    form: Callable[[float], str],
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = True,
) -> str:
    """A line over steps, with its moving median; ``marks`` are vertical lines with a label.

    A few outliers don't set the scale: values above it are drawn at its top, and a note says so.
    """
    points = points[:: 1 + len(points) // MAX_POINTS]
    ys = [y for _, y in points]
    low, high = _scale(ys, from_zero=from_zero)
    first, last = points[0][0], points[-1][0]
    span = (last - first) or 1.0

    def path(values: Sequence[float]) -> str:
        return " ".join(
            f"{1000 * (x - first) / span:.1f},{100 * (1 - (min(y, high) - low) / (high - low)):.2f}"
            for (x, _), y in zip(points, values, strict=True)
        )

    above = sum(y > high for y in ys)
    note = f'<p class="soft small">{above} steps lie above the scale.</p>' if above else ""
    return (
        f'<div class="chart" role="img" aria-label="{escape(title)}">'
        f'<div class="axis-y"><span>{escape(form(high))}</span>'
        f"<span>{escape(form((low + high) / 2))}</span><span>{escape(form(low))}</span></div>"
        f'<div class="plot">{_marks(marks, first, span)}'
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none">'
        '<path class="grid" d="M0 0H1000M0 50H1000M0 100H1000"/>'
        f'<polyline class="raw" points="{path(ys)}"/>'
        f'<polyline class="smooth" points="{path(_smooth(ys))}"/></svg></div>'
        f'<div class="axis-x"><span>step {first:.0f}</span><span>step {last:.0f}</span></div>'
        f"</div>{note}"
    )


def _marks(marks: Sequence[tuple[float, str]], first: float, span: float) -> str:
    found = []
    for x, label in marks:
        share = min(1.0, max(0.0, (x - first) / span))
        side = "left" if share > 0.6 else "right"
        found.append(
            f'<span class="mark {side}" style="left:{100 * share:.2f}%">'
            f"<b>{escape(label)}</b></span>"
        )
    return "".join(found)


def _scale(ys: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    """Bottom and top of the axis: the top is at most 1.5 times the 98th percentile."""
    ordered = sorted(ys)
    high = min(ordered[-1], 1.5 * ordered[int(0.98 * (len(ordered) - 1))])
    low = 0.0 if from_zero else ordered[0]
    return low, high if high > low else low + (abs(low) or 1.0)


def _smooth(ys: Sequence[float]) -> list[float]:
    half = SMOOTH_OVER // 2
    return [median(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))]
