"""The state that routers of one group exchange through etcd; pure.

Each publishes its state once a second under a lease; the others add it to their own. Numbers that
stop coming stop counting, so a router that is cut off, or whose etcd is gone, goes on alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.errors import WireError
from trainmesh.wire import MAX_BYTES, decode, encode

__all__ = [
    "MAX_AGE_S",
    "MAX_ROUTERS",
    "Heard",
    "Load",
    "PeerEndpoint",
    "RouterState",
    "demand_of",
    "encoded",
    "fresh",
    "loads_of",
    "read_states",
    "router_prefix",
]

MAX_AGE_S = 5.0
"""A state older than this does not count; routers publish every second."""
DEMAND_HALF_LIFE_S = 5.0
MAX_ENDPOINTS = 4096
MAX_ROUTERS = 64
"""Of one group; more are not listened to."""

Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
Word = Annotated[str, Meta(max_length=2048)]


class Load(Struct, frozen=True, array_like=True, omit_defaults=True):
    """Requests in flight at an endpoint, and the tokens of them that are still to come."""

    inflight: Count = 0
    tokens: Count = 0


class PeerEndpoint(Struct, frozen=True, array_like=True, omit_defaults=True):
    """An endpoint as a router sees it; for admins who are about to take one away."""

    model: Word
    name: Word
    node: Word
    open: bool
    """Whether it gets requests."""


class RouterState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one router publishes. ``loads`` and ``rtts_s``: by endpoint URL; ``demand``: by model,
    the requests that it could not place (waiting or refused)."""

    name: Word
    sequence: Count
    loads: Annotated[dict[Word, Load], Meta(max_length=MAX_ENDPOINTS)] = {}
    rtts_s: Annotated[dict[Word, Amount], Meta(max_length=MAX_ENDPOINTS)] = {}
    demand: Annotated[dict[Word, Amount], Meta(max_length=1024)] = {}
    places: Annotated[tuple[PeerEndpoint, ...], Meta(max_length=MAX_ENDPOINTS)] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """Another router's state, and when it came (monotonic seconds of this host)."""

    state: RouterState
    at_s: float


def router_prefix(group: str) -> str:
    """Keys under it are routers' names."""
    return f"/trainmesh/serve/{group}/routers/"


def encoded(state: RouterState) -> bytes:
    """The bytes to publish. If they would be too many, the least important parts are left out."""
    for less in (
        state,
        RouterState(
            name=state.name,
            sequence=state.sequence,
            loads={url: load for url, load in state.loads.items() if load.inflight},
            demand=state.demand,
        ),
    ):
        data = encode(less)
        if len(data) <= MAX_BYTES:
            return data
    return encode(RouterState(name=state.name, sequence=state.sequence))


def read_states(
    entries: Iterable[tuple[str, bytes, float]], own: str
) -> tuple[list[Heard], list[str]]:
    """States other than that of the router ``own``, from (key, value, when it came), and a line
    for each value that makes no sense."""
    heard: list[Heard] = []
    problems: list[str] = []
    for key, value, at_s in entries:
        try:
            state = decode(value, RouterState, what=key)
        except WireError as error:
            problems.append(f"ignored: {error}")
            continue
        if state.name != own:
            heard.append(Heard(state, at_s))
    return heard, problems


def fresh(heard: Iterable[Heard], now_s: float) -> list[Heard]:
    """Those that still count."""
    return [one for one in heard if now_s - one.at_s <= MAX_AGE_S]


def loads_of(heard: Iterable[Heard], now_s: float) -> dict[str, Load]:
    """By endpoint URL, what all others together have in flight there."""
    total: dict[str, Load] = {}
    for one in fresh(heard, now_s):
        for url, load in one.state.loads.items():
            before = total.get(url, Load())
            total[url] = Load(before.inflight + load.inflight, before.tokens + load.tokens)
    return total


def demand_of(heard: Iterable[Heard], now_s: float) -> Mapping[str, float]:
    """By model, what all others together could not place; it fades while they say nothing new."""
    total: dict[str, float] = {}
    for one in fresh(heard, now_s):
        left = 0.5 ** (max(0.0, now_s - one.at_s) / DEMAND_HALF_LIFE_S)
        for model, amount in one.state.demand.items():
            total[model] = total.get(model, 0.0) + amount * left
    return total
