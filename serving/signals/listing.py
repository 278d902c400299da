"""The models that endpoints list (``/v1/models``), with their fields and adapters; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from trainmesh.serving.config.types import EndpointConfig, ModelConfig, Runtime

__all__ = ["LoraAdapter", "Card", "Listing", "cards_in", "listing_of", "models_path"]

Card = dict[str, Any]
"""A model's entry in the list, as the endpoint has it."""
MAX_ENTRIES = 1_000
MAX_CARD_BYTES = 4_096
MAX_ADAPTERS = 256
"""Of one model: every worker is told of each, several times a second."""


class LoraAdapter(Struct, frozen=True):
    """A LoRA adapter or the like: a name of its own at some of a model's endpoints (by name)."""

    card: Card
    endpoints: tuple[str, ...]


class Listing(Struct, frozen=True, omit_defaults=True):
    """Of one model: its fields, without ``id``, and its adapters by their names."""

    card: Card = {}
    adapters: dict[str, LoraAdapter] = {}


class _Entries(Struct):
    data: list[Any] = []


def models_path(endpoint: EndpointConfig) -> str:
    """Where to ask; empty for runtimes without such a list."""
    if endpoint.runtime in (Runtime.TRITON, Runtime.KSERVE, Runtime.TORCHSERVE):
        return ""
    return "/v3/models" if endpoint.runtime is Runtime.OVMS else "/v1/models"


def cards_in(body: bytes) -> dict[str, Card]:
    """The entries in an answer, by their ``id``; what is none, or too large, is left out."""
    try:
        entries = msgspec.json.decode(body, type=_Entries).data
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    found: dict[str, Card] = {}
    for entry in entries[:MAX_ENTRIES]:
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, str) and name and len(msgspec.json.encode(entry)) <= MAX_CARD_BYTES:
            found.setdefault(name, entry)
    return found


def listing_of(name: str, model: ModelConfig, told: Mapping[str, Mapping[str, Card]]) -> Listing:
    """The listing of a model, from all its endpoints.

    Args:
        name: ours of it.
        model: its configuration.
        told: by endpoints' URLs, what each listed.
    """
    base: Card = {}
    lengths: list[int] = []
    holders: dict[str, list[str]] = {}
    cards: dict[str, Card] = {}
    for endpoint in model.endpoints:
        for id_, card in told.get(endpoint.url, {}).items():
            if id_ == (endpoint.served_model or name):
                base = base or card
                if isinstance(length := card.get("max_model_len"), int):
                    lengths.append(length)
            elif isinstance(card.get("parent"), str) and card["parent"]:
                holders.setdefault(id_, []).append(endpoint.name)
                cards.setdefault(id_, card)
    if lengths:
        base = {**base, "max_model_len": min(lengths)}  # what fits wherever it goes
    return Listing(
        card={key: value for key, value in base.items() if key != "id"},
        adapters={
            id_: LoraAdapter({**cards[id_], "parent": name}, tuple(names))
            for id_, names in sorted(holders.items())[:MAX_ADAPTERS]
        },
    )
