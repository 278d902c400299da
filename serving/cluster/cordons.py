"""Admins' orders for endpoints: no new requests (cordon), and wait until it is idle (drain)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.errors import WireError
from trainmesh.wire import decode

__all__ = ["Cordon", "CordonState", "cordon_prefix", "newest", "read_cordons"]


class CordonState(StrEnum):
    """``open`` takes a cordon back. It is stored too, so that an older order that arrives late does
    not count."""

    CORDON = "cordon"
    DRAIN = "drain"
    OPEN = "open"


class Cordon(Struct, frozen=True, kw_only=True):
    """``by``: who gave the order, as in ``admin:alice``; ``since_unix_s`` sorts the orders for one
    endpoint."""

    state: CordonState
    by: Annotated[str, Meta(max_length=256)]
    since_unix_s: float


def cordon_prefix(group: str) -> str:
    """Keys under it are endpoint names."""
    return f"/trainmesh/serve/{group}/cordons/"


def read_cordons(entries: Mapping[str, bytes], group: str) -> tuple[dict[str, Cordon], list[str]]:
    """The orders by endpoint name, and a line for each value that makes no sense."""
    found: dict[str, Cordon] = {}
    problems: list[str] = []
    for key, value in entries.items():
        try:
            found[key.removeprefix(cordon_prefix(group))] = decode(value, Cordon, what=key)
        except WireError as error:
            problems.append(f"ignored: {error}")
    return found, problems


def newest(ours: Mapping[str, Cordon], theirs: Mapping[str, Cordon]) -> dict[str, Cordon]:
    """The newest order for each endpoint; between equally old ones, the store's."""
    merged = dict(ours)
    for name, cordon in theirs.items():
        if name not in merged or cordon.since_unix_s >= merged[name].since_unix_s:
            merged[name] = cordon
    return merged
