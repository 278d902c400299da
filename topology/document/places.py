"""Where in a YAML or JSON text a value begins: looked up only to say where an error is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

import yaml

__all__ = ["DocumentPath", "Token", "TokenKind", "json_tokens", "places", "yaml_tokens"]

DocumentPath: TypeAlias = tuple[str | int, ...]
"""Keys and places in lists, from the root."""
JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^\s{}\[\],:"]+')


class TokenKind(Enum):
    SCALAR = auto()
    MAPPING = auto()
    LIST = auto()
    END = auto()


class Token(NamedTuple):
    """A scalar (``text``) or the begin or end of a collection."""

    kind: TokenKind
    line: int
    text: str = ""


def json_tokens(text: str) -> Iterator[Token]:
    """The tokens of valid JSON."""
    opening = {"{": TokenKind.MAPPING, "[": TokenKind.LIST}
    line, last = 1, 0
    for match in JSON_TOKEN.finditer(text):
        line += text.count("\n", last, match.start())
        last = match.start()
        word = match.group()
        if word in opening:
            yield Token(opening[word], line)
        elif word in ("}", "]"):
            yield Token(TokenKind.END, line)
        else:
            decoded = json.loads(word) if "\\" in word else word.strip('"')
            yield Token(TokenKind.SCALAR, line, decoded)


def yaml_tokens(events: Iterable[yaml.Event]) -> Iterator[Token]:
    """The tokens of parsed YAML."""
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.ScalarEvent):
            yield Token(TokenKind.SCALAR, line, str(event.value))
        elif isinstance(event, yaml.MappingStartEvent):
            yield Token(TokenKind.MAPPING, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            yield Token(TokenKind.LIST, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            yield Token(TokenKind.END, line)


def places(tokens: Iterable[Token]) -> Iterator[tuple[DocumentPath, int]]:
    """Each value's path and line, that of its key if it has one, in the order of the text."""
    open_paths: list[DocumentPath] = []
    counts: list[int | None] = []
    key: Token | None = None
    for token in tokens:
        if token.kind is TokenKind.END:
            open_paths.pop()
            counts.pop()
            continue
        path: DocumentPath = ()
        line = token.line
        if open_paths:
            count = counts[-1]
            if count is not None:
                path = (*open_paths[-1], count)
                counts[-1] = count + 1
            elif key is None:
                key = token
                continue
            else:
                path, line, key = (*open_paths[-1], key.text), key.line, None
        yield path, line
        if token.kind is not TokenKind.SCALAR:
            open_paths.append(path)
            counts.append(0 if token.kind is TokenKind.LIST else None)
