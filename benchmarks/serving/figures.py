"""What is measured of a router, and how a table of it is printed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

__all__ = ["Aim", "Column", "Figures", "Rounds", "judged", "table", "typical"]

Figures: TypeAlias = dict[str, float]
"""What one round measured, by name. ``nan``: nothing; ``inf``: it did not happen in time."""
Rounds: TypeAlias = list[Figures]


@dataclass(frozen=True)
class Column:
    """One column: the median over the rounds, with its range where ``spread`` is set."""

    name: str
    title: str
    digits: int = 0
    spread: bool = False


@dataclass(frozen=True)
class Aim:
    """What a router should reach. ``peers``: figures of the others, by their names."""

    text: str
    met: Callable[[Figures, Mapping[str, Figures]], bool | None]
    """None: nothing to compare with was measured."""


def typical(rounds: Rounds) -> Figures:
    """The median of each figure."""
    names = {name: None for figures in rounds for name in figures}
    return {name: median(f.get(name, math.nan) for f in rounds) for name in names}


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return "never" if math.isinf(value) else f"{value:,.{digits}f}"


def _cell(column: Column, rounds: Rounds) -> str:
    values = [figures.get(column.name, math.nan) for figures in rounds]
    text = _number(median(values), column.digits)
    if not column.spread or len(values) < 2 or text == "-":
        return text
    return f"{text} ({_number(min(values), column.digits)}..{_number(max(values), column.digits)})"


def table(columns: Sequence[Column], results: Mapping[str, Rounds | str], first: str) -> list[str]:
    """Lines of a Markdown table: a row a router. Where ``results`` has a text for a router, it was
    not measured, and the text says why."""
    rows = [[first, *(column.title for column in columns)]]
    for name, rounds in results.items():
        if isinstance(rounds, str):
            rows.append([name, f"not measured: {rounds}", *[""] * (len(columns) - 1)])
        else:
            rows.append([name, *(_cell(column, rounds) for column in columns)])
    measured = [row for row in rows if not (len(row) > 1 and row[1].startswith("not measured"))]
    widths = [max(len(row[i]) for row in measured) for i in range(len(columns) + 1)]
    lines = []
    for row in rows:
        if row in measured:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("| " + " | ".join(cells) + " |")
        else:
            lines.append(f"| {row[0].ljust(widths[0])} | {row[1]} |" + " |" * (len(columns) - 1))
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def judged(aims: Sequence[Aim], ours: Figures, peers: Mapping[str, Figures]) -> list[str]:
    """One line for each aim: met, MISSED, or not to be said."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    return [f"  {words[aim.met(ours, peers)]:12} {aim.text}" for aim in aims]
