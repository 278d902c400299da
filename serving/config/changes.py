"""The changes between two configurations, in words, and which of them need a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, fields

from trainmesh.serving.config.types import Config, ModelConfig

__all__ = ["RESTART", "changes", "needs_restart"]

RESTART = ("listen", "admin", "workers", "tls", "ledger", "audit", "routers")
"""Parts that a running router keeps as they were when it started."""
SECRET = frozenset({"keys", "admin_keys"})
MAX_SHOWN = 60


def changes(old: Config, new: Config) -> tuple[str, ...]:
    """One line for each difference, such as ``model m: policy hybrid -> mesh``."""
    return tuple(_all_changes(old, new))


def needs_restart(old: Config, new: Config) -> tuple[str, ...]:
    """The names of changed parts that take effect with the next start only."""
    return tuple(name for name in RESTART if getattr(old, name) != getattr(new, name))


def _all_changes(old: Config, new: Config) -> Iterator[str]:
    for name in _in_either(old.models, new.models):
        if name not in new.models:
            yield f"model {name} removed"
        elif name not in old.models:
            yield f"model {name} added, endpoints: {len(new.models[name].endpoints)}"
        else:
            yield from _model_changes(f"model {name}", old.models[name], new.models[name])
    for name in _in_either(old.tenants, new.tenants):
        if name not in new.tenants:
            yield f"tenant {name} removed"
        elif name not in old.tenants:
            yield f"tenant {name} added"
        else:
            yield from _values(f"tenant {name}: ", old.tenants[name], new.tenants[name])
    yield from _values("", old, new, without=("models", "tenants"))


def _model_changes(where: str, old: ModelConfig, new: ModelConfig) -> Iterator[str]:
    before = {endpoint.name: endpoint for endpoint in old.endpoints}
    after = {endpoint.name: endpoint for endpoint in new.endpoints}
    for name in _in_either(before, after):
        if name not in after:
            yield f"{where}: endpoint {name} removed"
        elif name not in before:
            yield f"{where}: endpoint {name} added"
        else:
            yield from _values(f"{where}: endpoint {name}: ", before[name], after[name])
    if before == after and tuple(before) != tuple(after):
        yield f"{where}: endpoints in another order"
    yield from _values(f"{where}: ", old, new, without=("endpoints",))


def _values(where: str, old: Any, new: Any, without: tuple[str, ...] = ()) -> Iterator[str]:
    """The fields of two structs of a kind that differ, with those inside them."""
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name in without or before == after:
            continue
        if field.name in SECRET:
            yield f"{where}{field.name} changed"
        elif isinstance(before, Struct) and isinstance(after, Struct):
            yield from _values(f"{where}{field.name}.", before, after)
        else:
            yield f"{where}{field.name} {_shown(before)} -> {_shown(after)}"


def _shown(value: object) -> str:
    if isinstance(value, Struct):
        text = ", ".join(f"{name}: {inner}" for name, inner in asdict(value).items() if inner)
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, tuple):
        text = "[" + ", ".join(map(str, value)) + "]"
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = str(value) if value not in ("", None) else "none"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _in_either(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    return [*old, *(name for name in new if name not in old)]
