"""Where run directories live: the folder that the environment names, or one that stands in for it.

A command that looks for a run uses the environment alone, so it finds the run even if the folder
has become full or read-only since. A command that begins a run must write, and goes on to the next
folder if it can't, like Python's ``tempfile`` (and so torchrun).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Place", "places", "runs_root", "describe_unreadable"]

TEMPORARY = ("TMPDIR", "TEMP", "TMP")
"""In the order of ``tempfile``."""
DEFAULTS = ("/tmp", "/var/tmp")  # noqa: S108 - what is made there is private, and its owner checked


@dataclass(frozen=True)
class Place:
    """A folder that may hold run directories, and who names it (a variable; "" for a default)."""

    folder: Path
    variable: str

    @property
    def root(self) -> Path:
        """The run directories of this user in it."""
        own = self.variable == "XDG_RUNTIME_DIR"  # which is a user's own
        return self.folder / ("trainmesh" if own else f"trainmesh-{os.getuid()}")

    def __str__(self) -> str:
        return f"{self.variable}={self.folder}" if self.variable else str(self.folder)


def places(environ: Mapping[str, str] = os.environ) -> tuple[Place, ...]:
    """The place that ``environ`` names, then those that stand in for it."""
    named = [(name, environ.get(name)) for name in ("XDG_RUNTIME_DIR", *TEMPORARY)]
    found = [Place(Path(os.path.abspath(folder)), name) for name, folder in named if folder]
    found += [Place(Path(folder), "") for folder in DEFAULTS]
    unique: dict[Path, Place] = {}
    for place in found:
        unique.setdefault(place.root, place)
    return tuple(unique.values())


def runs_root() -> Path:
    """Where run directories of this user are looked for, and where they are made if that is
    writable."""
    return places()[0].root


def describe_unreadable() -> str:
    """Why nothing can be found in ``runs_root``; "" where it can be looked into, or where nothing
    has been made in its folder yet."""
    place = places()[0]
    try:
        os.listdir(place.root)
    except FileNotFoundError:
        return "" if os.path.isdir(place.folder) else f"{place}: no such directory"
    except OSError as error:
        return f"{place.root}: {error.strerror}"
    return ""
