"""What is wrong with a value of serve.yaml, and where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeAlias

__all__ = ["ConfigPath", "Problem", "near", "path_text"]

ConfigPath: TypeAlias = tuple[str | int, ...]
"""Keys and places in lists, from the document's root."""
PLAIN = re.compile(r"[!-~]+\Z")
MAX_NAMES = 24
MAX_SHOWN = 60


class Problem(Exception):
    """``text`` describes the mistake in the value at ``path``, and never holds a secret."""

    def __init__(self, text: str, *path: str | int) -> None:
        super().__init__(text)
        self.text = text
        self.path: ConfigPath = path


def path_text(path: ConfigPath) -> str:
    """``models.m.endpoints[0].url``."""
    words = [f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in path]
    return "".join(words).removeprefix(".")


def near(name: str, names: Iterable[str]) -> str:
    """``: did you mean NAME?``, or the names there are."""
    known = sorted(names)
    if close := get_close_matches(name, known, 1, 0.6):
        return f": did you mean {close[0]}?"
    more = f", ... ({len(known)} in all)" if len(known) > MAX_NAMES else ""
    return f"; known: {', '.join(map(_shown, known[:MAX_NAMES])) or 'none'}{more}"


def _shown(text: str) -> str:
    short = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
    return short if PLAIN.match(short) else ascii(short)
