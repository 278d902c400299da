"""What the ranks of a check are told, and what they answer."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from trainmesh.errors import ConfigError
from trainmesh.types import MAX_INT, Plan

__all__ = ["RankResult", "Failed", "Spec", "factory", "is_place", "target_of"]


class Spec(Struct, frozen=True, kw_only=True):
    """One check. ``target`` is a registered name, or where the class is: ``package.module:Class``
    or ``path/file.py:Class``."""

    kind: str
    """executor or codec"""
    target: str
    options: str = ""
    plan: Plan | None = None
    world_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    steps: int = 64
    tolerance: float = 0.01
    timeout_s: float = 20.0


class RankResult(Struct, frozen=True, kw_only=True):
    """What one rank found: ``digests`` of its results by case, or what failed."""

    digests: dict[str, str] = {}
    failed: str = ""
    """A requirement that is not met."""
    error: str = ""
    """Something raised: often only because another rank failed."""
    ended_ns: int = MAX_INT
    """By the host's monotonic clock, which all ranks share."""


class Failed(Exception):
    """A requirement is not met; the message says which, and where."""


def target_of(wanted: object) -> str:
    """How another process finds ``wanted``: a class or function, or a name already.

    Raises:
        ConfigError: it is neither, or is defined inside a function.
    """
    if isinstance(wanted, str):
        return wanted
    name = getattr(wanted, "__qualname__", "")
    if not inspect.isclass(wanted) and not inspect.isfunction(wanted) or "." in name:
        raise ConfigError(f"{wanted!r} is no class or function at the top of a module")
    module = wanted.__module__
    if module != "__main__" and importlib.util.find_spec(module) is not None:
        return f"{module}:{name}"
    return f"{inspect.getfile(wanted)}:{name}"


def is_place(target: str) -> bool:
    """Whether ``target`` says where a class is (else it is a registered name)."""
    place, _, name = target.rpartition(":")
    return bool(place) and name.isidentifier()


def factory(target: str) -> Callable[..., Any]:
    """The class or function at the place ``target``.

    Raises:
        ConfigError: there is none.
    """
    place, _, name = target.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else _imported(place)
        found: Callable[..., Any] = getattr(module, name)
    except (ImportError, OSError, AttributeError) as error:
        raise ConfigError(f"{target} can't be loaded: {error}") from error
    return found


def _imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
