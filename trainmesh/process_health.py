"""A control process reports its own health to its launcher, through its standard output."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from trainmesh.wire import encode

__all__ = ["FILES", "STORE", "ProcessHealth", "HealthReporter"]

STORE = "store"
FILES = "files"


class ProcessHealth(Struct, frozen=True, kw_only=True):
    """What is wrong with ``about`` (``store`` or ``files``), in words; empty once nothing is."""

    about: str
    text: str


class HealthReporter:
    """Writes a line of JSON whenever something has changed; never blocks, never raises.

    Args:
        file: Descriptor of the pipe to the launcher.
    """

    def __init__(self, file: int = 1) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._told: dict[str, str] = {}
        try:
            if stat.S_ISFIFO(os.fstat(file).st_mode):
                os.set_blocking(file, False)
        except OSError:
            pass  # closed: nobody listens

    def set(self, about: str, text: str) -> None:
        """``text`` is wrong with ``about`` now; empty: nothing is."""
        with self._lock:
            if self._told.get(about, "") == text:
                return
            try:
                os.write(self._file, encode(ProcessHealth(about=about, text=text)) + b"\n")
            except OSError:
                return  # nobody reads, or not now: it is told with the next change
            self._told[about] = text

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """A context for writing ``path``: a failure is reported, not raised."""
        try:
            yield
        except OSError as error:
            self.set(FILES, f"can't write {path}: {error.strerror}")
        else:
            self.set(FILES, "")
