"""Admins' words on endpoints: no new requests (cordon), or none until it is idle (drain)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.errors import WireError
from trainmesh.wire import decode

__all__ = ["Cordon", "CordonState", "cordon_prefix", "newest", "read_cordons"]


class CordonState(StrEnum):
    """``open`` takes a cordon back: it is written down too, so that an older word that arrives
    late does not count."""

    CORDON = "cordon"
    DRAIN = "drain"
    OPEN = "open"


class Cordon(Struct, frozen=True, kw_only=True):
    """``by``: who said so, as in ``admin:alice``; ``since_unix_s`` orders words on one endpoint."""

    state: CordonState
    by: Annotated[str, Meta(max_length=256)]
    since_unix_s: float


def cordon_prefix(group: str) -> str:
    """Keys under it are endpoint names."""
    return f"/trainmesh/serve/{group}/cordons/"


def read_cordons(entries: Mapping[str, bytes], group: str) -> tuple[dict[str, Cordon], list[str]]:
    """The words by endpoint name, and a line for each value that makes no sense."""
    found: dict[str, Cordon] = {}
    problems: list[str] = []
    for key, value in entries.items():
        try:
            found[key.removeprefix(cordon_prefix(group))] = decode(value, Cordon, what=key)
        except WireError as error:
            problems.append(f"ignored: {error}")
    return found, problems


def newest(ours: Mapping[str, Cordon], theirs: Mapping[str, Cordon]) -> dict[str, Cordon]:
    """Of each endpoint the word that was said last; at the same time, the one of the store."""
    merged = dict(ours)
    for name, cordon in theirs.items():
        if name not in merged or cordon.since_unix_s >= merged[name].since_unix_s:
            merged[name] = cordon
    return merged
