"""The values of a topology document, checked; a complaint knows its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

from trainmesh.topology.document.places import DocumentPath
from trainmesh.topology.document.text import Value
from trainmesh.topology.graph import MAX_NAME

__all__ = ["DocumentProblem", "label", "mapping", "number", "one_of", "required", "whole"]

WORDS = {True: "true", False: "false", None: "null"}
T = TypeVar("T")


class DocumentProblem(Exception):
    """What is wrong, and the path to it."""

    def __init__(self, text: str, *path: str | int) -> None:
        super().__init__(text)
        self.path: DocumentPath = path

    def inside(self, path: DocumentPath) -> DocumentProblem:
        """The same, seen from further out."""
        return DocumentProblem(str(self), *path, *self.path)


Fields = Mapping[str, Value]


def mapping(value: Value, what: str, allowed: AbstractSet[str] | None = None) -> dict[str, Value]:
    """``value`` as a mapping that has no other keys than those allowed."""
    if not isinstance(value, dict):
        raise DocumentProblem(f"{what} must be a mapping")
    if allowed is not None and not value.keys() <= allowed:
        key = next(key for key in value if key not in allowed)
        names = ", ".join(allowed)
        raise DocumentProblem(f"{what}: unknown key {key[:40]!r}; known are {names}", key)
    return value


def required(fields: Fields, key: str, what: str) -> str:
    """The scalar at ``key``, which must be there."""
    if key not in fields:
        raise DocumentProblem(f"{what}: {key} is missing")
    return _scalar(fields, key, what)


def _scalar(fields: Fields, key: str, what: str) -> str:
    value = fields[key]
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        raise DocumentProblem(f"{what} must be a single value", key)
    return WORDS[value]


def label(fields: Fields, key: str, what: str) -> str:
    """A name."""
    value = _scalar(fields, key, what)
    if not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise DocumentProblem(f"{what} must be 1 to {MAX_NAME} printable characters", key)
    return value


def whole(fields: Fields, key: str, what: str, *, at_most: int) -> int:
    """A whole number from 0 to ``at_most``."""
    word = _scalar(fields, key, what)
    if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) <= at_most):
        raise DocumentProblem(
            f"{what} must be a whole number up to {at_most}, not {word[:40]!r}", key
        )
    return int(word)


def number(fields: Fields, key: str, what: str, *, positive: bool) -> float:
    """A finite number that is not negative."""
    word = _scalar(fields, key, what)
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        wanted = "a positive" if positive else "a non-negative"
        raise DocumentProblem(f"{what} must be {wanted} finite number, not {word[:40]!r}", key)
    return value


def one_of(fields: Fields, key: str, what: str, choices: Mapping[str, T]) -> T:
    """One of some words."""
    word = _scalar(fields, key, what)
    if word not in choices:
        names = ", ".join(choices)
        raise DocumentProblem(f"{what} must be one of {names}, not {word[:40]!r}", key)
    return choices[word]
