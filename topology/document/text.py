"""YAML or JSON text to a plain tree, quickly, safely, and with the line of each place at hand.

JSON is read by the standard library, YAML from libyaml's events: ``yaml.load`` and
``yaml.compose`` resolve tags and aliases, take ten times as long, and recurse until the process
crashes on deeply nested text. Here nothing but text, lists and mappings is made, whatever the
input. Lines are looked up afterwards, if there is something to complain about.

The limits are those below, not a library's. libyaml reads on to the end of what may be a key
before it gives an event, and refuses text there that is nested deeper than it likes; such text is
held against our limit first, so the words are the same with every release of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sized
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeAlias

import yaml

from trainmesh.errors import GraphError
from trainmesh.topology.document.places import DocumentPath, Token, json_tokens, places, yaml_tokens

__all__ = ["MAX_ENTRIES", "Document", "Value", "parse"]

MAX_DEPTH = 16
"""Far deeper than a topology is nested."""
TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
MAX_ENTRIES = 500_000
"""In one list or mapping: as many as a link graph may have links."""
MAX_VALUES = 12 * MAX_ENTRIES
"""In all: links of eight values each and nodes of three, as many as there may be of them."""
LIST_ENTRY = re.compile(r"^ *- ", re.MULTILINE)
LINK_IN_JSON = re.compile(r'"src"\s*:')
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Value: TypeAlias = "str | bool | None | list[Value] | dict[str, Value]"
"""Numbers stay text; only JSON has booleans and null."""


@dataclass(frozen=True)
class Document:
    """A parsed text."""

    root: Value
    _tokens: Callable[[], Iterable[Token]]

    def line(self, path: DocumentPath) -> int:
        """Where ``path`` begins: the line of its key if it has one."""
        found = (line for place, line in places(self._tokens()) if place == path)
        return next(found, 1)


class _Refused(Exception):
    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line


class _NotYaml(_Refused):
    pass


class _Repeated(Exception):
    """A key is there twice in one JSON object."""


def parse(text: str, *, source: str) -> Document:
    """The one document in ``text``.

    Raises:
        GraphError: not YAML or JSON, empty, more than one document, a key that is there twice
            or is not a scalar, an alias, too many entries, or nested too deeply; the message
            names ``source`` and the line.
    """
    text = text.removeprefix("\ufeff")
    try:
        _refuse_crowds(text)
        return _parse(text)
    except _NotYaml as refusal:
        broken = _json_problem(text) if source.lower().endswith(".json") else None
        raise _error(broken or refusal, source) from refusal
    except _Refused as refusal:
        raise _error(refusal, source) from refusal


def _error(refusal: _Refused, source: str) -> GraphError:
    where = source if refusal.line is None else f"{source}:{refusal.line}"
    return GraphError(f"{where}: {refusal}")


def _json_problem(text: str) -> _Refused | None:
    """Why ``text``, which is not YAML either, is no JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return _Refused(error.lineno, f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]}")
    except RecursionError:
        pass  # nested too deeply, which YAML's reason says
    return None


def _parse(text: str) -> Document:
    if re.match(r"\s*\{", text) and _num_values(text) <= MAX_VALUES:
        try:
            return Document(_from_json(text), lambda: json_tokens(text))
        except (json.JSONDecodeError, RecursionError):
            pass  # YAML, or neither: the other parser says what is wrong, and counts the depth
    return Document(_from_yaml(text), lambda: yaml_tokens(yaml.parse(text, Loader=Loader)))


def _num_values(text: str) -> int:
    """No JSON text has more values: each opens a list or an object, follows a comma, or is the
    first one inside."""
    return 2 * (text.count("{") + text.count("[")) + text.count(",")


def _refuse_crowds(text: str) -> None:
    """Ends early with what can't be a document: it would have more links, or be wrong anyway.
    Reading it up to there would take a while."""
    for mark, pattern in (("- ", LIST_ENTRY), ('"src"', LINK_IN_JSON)):
        if text.count(mark) > MAX_ENTRIES:
            beyond = next(islice(pattern.finditer(text), MAX_ENTRIES, None), None)
            if beyond is not None:
                line = text.count("\n", 0, beyond.start()) + 1
                raise _Refused(line, f"more than {MAX_ENTRIES} entries")


def _from_json(text: str) -> Value:
    try:
        root: Value = json.loads(
            text, object_pairs_hook=_mapping, parse_int=str, parse_float=str, parse_constant=str
        )
    except _Repeated as error:
        key, seen = error.args[0], set()
        for path, line in places(json_tokens(text)):
            if path and path[-1] == key:
                if path in seen:
                    raise _Refused(line, f"{key[:40]!r} is there twice") from error
                seen.add(path)
        raise
    return root


def _mapping(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Repeated(key)
            seen.add(key)
    return mapping


def _from_yaml(text: str) -> Value:
    builder = _Builder()
    take = builder.take
    event: Any = None
    try:
        for event in yaml.parse(text, Loader=Loader):
            take(event)
    except yaml.YAMLError as error:
        raise _refusal(error, text, event, builder.depth) from error
    except UnicodeEncodeError as error:
        raise _NotYaml(None, "not valid YAML: it holds half of a character") from error
    if not builder.top:
        raise _Refused(None, "the document is empty")
    return builder.top[0]


def _refusal(error: yaml.YAMLError, text: str, last: Any, depth: int) -> _Refused:
    """Why ``text`` is refused, where the library does so ``depth`` deep after the event ``last``:
    our own reason if there is one in what the library has looked at since."""
    end = getattr(error, "problem_mark", None)
    if end is None:
        return _NotYaml(None, f"not valid YAML: {str(error).splitlines()[0]}")
    begin = last.end_mark if last is not None else None
    index, line = (begin.index, begin.line) if begin is not None else (0, 0)
    with suppress(yaml.YAMLError):
        for token in yaml.scan(text[index : end.index], Loader=yaml.SafeLoader):
            if isinstance(token, OPENING):
                depth += 1
            elif isinstance(token, CLOSING):
                depth -= 1
            if depth > MAX_DEPTH:
                return _Refused(line + token.start_mark.line + 1, TOO_DEEP)
    return _NotYaml(end.line + 1, f"not valid YAML: {getattr(error, 'problem', None) or error}")


class _Builder:
    """Puts events together. ``top`` holds the document. Of the innermost collection that is
    open, one of ``_list`` and ``_mapping`` is set; ``_key`` waits for a value in the latter."""

    def __init__(self) -> None:
        self.top: list[Value] = []
        self._list: list[Value] | None = self.top
        self._mapping: dict[str, Value] | None = None
        self._key: str | None = None
        self._around: list[tuple[list[Value] | None, dict[str, Value] | None]] = []
        self._num_values = 0

    @property
    def depth(self) -> int:
        """How many collections are open."""
        return len(self._around)

    def take(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._add(event.value, event)
        elif kind is yaml.MappingStartEvent:
            mapping: dict[str, Value] = {}
            self._begin(mapping, event)
            self._list, self._mapping = None, mapping
        elif kind is yaml.SequenceStartEvent:
            entries: list[Value] = []
            self._begin(entries, event)
            self._list, self._mapping = entries, None
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            self._list, self._mapping = self._around.pop()
        elif kind is yaml.AliasEvent:
            _fail(event, "aliases (*name) are not supported")
        elif kind is yaml.DocumentStartEvent and self.top:
            _fail(event, "more than one document")

    def _begin(self, value: Value, event: yaml.Event) -> None:
        if len(self._around) == MAX_DEPTH:
            _fail(event, TOO_DEEP)
        self._add(value, event)
        self._around.append((self._list, self._mapping))

    def _add(self, value: Value, event: yaml.Event) -> None:
        if self._list is not None:
            self._count(self._list, event)
            self._list.append(value)
        elif self._mapping is not None:
            if self._key is not None:
                self._mapping[self._key] = value
                self._key = None
            else:
                self._count(self._mapping, event)
                self._key = self._new_key(self._mapping, value, event)

    def _count(self, inside: Sized, event: yaml.Event) -> None:
        if len(inside) == MAX_ENTRIES:
            _fail(event, f"more than {MAX_ENTRIES} entries")
        if self._num_values == MAX_VALUES:
            _fail(event, f"more than {MAX_VALUES} values")
        self._num_values += 1

    def _new_key(self, mapping: dict[str, Value], value: Value, event: yaml.Event) -> str:
        if not isinstance(value, str):
            _fail(event, "a key must be a name")
        if value in mapping:
            _fail(event, f"{value[:40]!r} is there twice")
        return value


def _fail(event: yaml.Event, text: str) -> NoReturn:
    line = event.start_mark.line + 1 if event.start_mark is not None else None
    raise _Refused(line, text)
