"""YAML or JSON text to a small tree that knows its lines.

Built from the parser's events instead of ``yaml.load`` or ``yaml.compose``: those resolve tags
and aliases, take ten times as long, and the C loader recurses until the process crashes on
deeply nested text. Here nothing but text, lists and mappings is made, whatever the input.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import yaml

from trainmesh.errors import GraphError

__all__ = ["Item", "parse"]

MAX_DEPTH = 16
MAX_ENTRIES = 500_000
"""In one list or mapping: as many as a link graph may have links."""
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Item(NamedTuple):
    """A scalar (its text), a list or a mapping, and the line where it begins: that of its key
    if it has one."""

    line: int
    value: Value


Value: TypeAlias = str | list[Item] | dict[str, Item]


def parse(text: str, *, source: str) -> Item:
    """The one document in ``text``.

    Raises:
        GraphError: not YAML or JSON, empty, more than one document, a key that is there twice
            or is not a scalar, an alias, too many entries, or nested too deeply; the message
            names ``source`` and the line.
    """
    builder = _Builder(source)
    try:
        for event in yaml.parse(text, Loader=Loader):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = source if mark is None else f"{source}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise GraphError(f"{where}: not valid YAML: {problem}") from error
    except UnicodeEncodeError as error:
        raise GraphError(f"{source}: not valid YAML: it holds half of a character") from error
    if builder.root is None:
        raise GraphError(f"{source}: the document is empty")
    return builder.root


class _Builder:
    """Puts events together; ``_open`` are the collections around the next one, ``_keys`` the
    key (and its line) that waits for a value in each of them."""

    def __init__(self, source: str) -> None:
        self.root: Item | None = None
        self._source = source
        self._open: list[Value] = []
        self._keys: list[tuple[str, int] | None] = []

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if isinstance(event, yaml.ScalarEvent):
            self._add(str(event.value), line)
        elif isinstance(event, yaml.MappingStartEvent):
            self._begin({}, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin([], line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, yaml.AliasEvent):
            raise self._fail(line, "aliases (*name) are not supported")
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise self._fail(line, "more than one document")

    def _begin(self, value: Value, line: int) -> None:
        if len(self._open) == MAX_DEPTH:
            raise self._fail(line, f"nested more than {MAX_DEPTH} deep")
        self._add(value, line)
        self._open.append(value)
        self._keys.append(None)

    def _add(self, value: Value, line: int) -> None:
        if not self._open:
            self.root = Item(line, value)
            return
        parent, key = self._open[-1], self._keys[-1]
        if len(parent) == MAX_ENTRIES:
            raise self._fail(line, f"more than {MAX_ENTRIES} entries")
        if isinstance(parent, list):
            parent.append(Item(line, value))
        elif isinstance(parent, dict) and key is not None:
            parent[key[0]] = Item(key[1], value)
            self._keys[-1] = None
        elif isinstance(parent, dict):
            if not isinstance(value, str):
                raise self._fail(line, "a key must be a name")
            if value in parent:
                raise self._fail(line, f"{value[:40]!r} is there twice")
            self._keys[-1] = (value, line)

    def _fail(self, line: int, text: str) -> GraphError:
        return GraphError(f"{self._source}:{line}: {text}")
