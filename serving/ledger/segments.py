"""Names of a ledger's segments, and where a ledger is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from trainmesh.errors import ConfigError
from trainmesh.rundir import job_slug
from trainmesh.serving.config.types import Config

__all__ = ["Segment", "ledger_dir", "segments", "state_root"]

_NAME = re.compile(r"decisions-(\d{1,4})-(\d{1,12})\.jsonl")


class Segment(NamedTuple):
    """One file of a ledger. Segments sort by worker, then age, oldest first."""

    worker: int
    number: int
    path: Path

    @classmethod
    def at(cls, folder: Path, worker: int, number: int) -> Segment:
        return cls(worker, number, folder / f"decisions-{worker}-{number:08d}.jsonl")


def segments(folder: Path, worker: int | None = None) -> list[Segment]:
    """The segments in ``folder``, of one worker or of all; none if it can't be read."""
    found = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        match = _NAME.fullmatch(name)
        if match and worker in (None, int(match[1])):
            found.append(Segment(int(match[1]), int(match[2]), folder / name))
    return sorted(found)


def state_root() -> Path:
    """The folder of files that routers leave for people to read:
    ``$XDG_STATE_HOME/trainmesh/serve``.

    Raises:
        ConfigError: it is not set, and the user has no home (an id without a name, and no HOME).
    """
    base = os.environ.get("XDG_STATE_HOME")
    try:
        root = Path(base) if base else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ConfigError(
            "no home directory for the ledger; set XDG_STATE_HOME, or ledger.dir in serve.yaml"
        ) from error
    return root / "trainmesh" / "serve"


def ledger_dir(config: Config) -> Path:
    """Where the ledger of ``config`` is: a place that outlives the router and is the same next
    time, so it is named after the address that the router listens on."""
    if config.ledger.dir:
        return Path(config.ledger.dir)
    return state_root() / job_slug(config.listen) / "ledger"
