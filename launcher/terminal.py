"""Text and tables on standard output: rich in a terminal, plain and never cut short elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainmesh.console import clean

__all__ = ["Output", "waiting"]

PIPE_WIDTH = 400
"""Columns where there is no terminal: wide enough for every table."""


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows on standard error that ``text`` is going on, in a terminal only."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    with Console(stderr=True, emoji=False, markup=False).status(clean(text)):
        yield


class Output:
    """Prints to standard output; words are never read as rich's markup."""

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        self._console = Console(highlight=False, width=width, emoji=False, markup=False)

    def clear(self) -> None:
        """Clear the screen, where there is one."""
        self._console.clear()

    def text(self, *texts: str, style: str = "") -> None:
        """Each text on a line of its own."""
        for text in texts:
            self._console.print(Text(clean(text), style=style), soft_wrap=True)

    def heading(self, text: str) -> None:
        self._console.print()
        self.text(text, style="bold")

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], kinds: str, limit: int = 10_000
    ) -> None:
        """``kinds`` has a letter for each column: t (text) or n (number, flush right)."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, kind in zip(head, kinds, strict=True):
            table.add_column(Text(name), justify="right" if kind == "n" else "left")
        for row in rows[:limit]:
            table.add_row(*(Text(clean(cell)) for cell in row))
        self._console.print(table)
        if len(rows) > limit:
            self.text(f"... and {len(rows) - limit} more", style="dim")
