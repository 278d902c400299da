"""How far a probe has come, on standard error: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trainmesh.console import clean
from trainmesh.units import count

__all__ = ["ProbeProgress", "shown"]

MAX_NAMED = 4
"""Pairs in one line; of more there is the number."""


class ProbeProgress:
    """Told of rounds and of the pairs that are done."""

    def __init__(self, bar: Progress | None, num_rounds: int, num_pairs: int) -> None:
        self._bar = bar
        self._num_rounds = num_rounds
        self._task = bar.add_task("getting ready", total=num_pairs) if bar is not None else None

    def begin_round(self, number: int, pairs: list[tuple[str, str]]) -> None:
        named = ", ".join(f"{src} - {dst}" for src, dst in pairs[:MAX_NAMED])
        more = f" and {len(pairs) - MAX_NAMED} more" if len(pairs) > MAX_NAMED else ""
        text = clean(f"round {number} of {self._num_rounds}: {named}{more}")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)
        else:
            print(f"trainmesh: {text}", file=sys.stderr, flush=True)

    def pair_done(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)


@contextmanager
def shown(num_rounds: int, num_pairs: int) -> Iterator[ProbeProgress]:
    """Progress of a probe of ``num_pairs`` in ``num_rounds``, gone from a terminal at the end."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield ProbeProgress(None, num_rounds, num_pairs)
        return
    with Progress(
        BarColumn(),
        TextColumn(f"{{task.completed:.0f}} of {count(num_pairs, 'pair')},"),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield ProbeProgress(bar, num_rounds, num_pairs)
