"""The ledgers of this user's routers, as ``why`` and ``replay`` find them."""

from __future__ import annotations

from pathlib import Path

from trainmesh.console import clean
from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.serving.control.rundir import ServeRun
from trainmesh.serving.ledger.segments import segments, state_root

__all__ = ["NoLedger", "check_ledger", "find_ledgers"]


class NoLedger(TrainmeshError):
    """No router of this user has kept one."""


def find_ledgers() -> list[Path]:
    """Ledgers of running routers first, then those left behind by others, the newest first."""
    live = [Path(info.ledger) for _, info in ServeRun.live() if info.ledger]
    left = sorted(state_root().glob("*/ledger"), key=_changed, reverse=True)
    return list(dict.fromkeys((*live, *left)))


def check_ledger(path: Path) -> None:
    """See that ``path`` can be read as a ledger: a folder of segments, or one of them.

    Raises:
        ConfigError: it is not there, can't be read, or is another folder.
    """
    try:
        if path.is_dir():
            found = [segment.path for segment in segments(path)]
            if not found and not list(path.iterdir()):
                raise ConfigError(
                    f"{clean(str(path))}: an empty folder; nothing was recorded in it"
                )
            if not found:
                raise ConfigError(
                    f"{clean(str(path))}: this is no ledger: it has no file decisions-*.jsonl; "
                    "without a path the ledgers of this user's routers are looked through"
                )
        else:
            found = [path]
        for each in found:
            if not each.is_fifo():  # it is opened once
                each.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{clean(str(error.filename))}: {error.strerror}") from error


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
