"""Append to a run's record, in bounded space."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from trainmesh.process_health import HealthReporter
from trainmesh.types import RecordLine
from trainmesh.wire import encode

__all__ = ["RecordWriter", "is_torn"]

HALVE_EVERY_BYTES = 64 * 1024 * 1024
"""Some minutes of detail for a large job; from then on a record grows ever more slowly."""


class RecordWriter:
    """Writes RecordLines. Each 64 MB halves the steps that are kept (every 2nd, 4th, ...; the
    same ones of every rank), so that a run of any length leaves a record that can be read."""

    def __init__(self, path: Path, health: HealthReporter) -> None:
        self._path = path
        self._health = health
        self._file = path.open("ab", buffering=0)
        self._written = path.stat().st_size
        self._torn = is_torn(path)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, lines: list[RecordLine]) -> None:
        """Append the lines that are kept. Lines that the disk doesn't take are lost, and
        reported."""
        stride = 1 << (self._written // HALVE_EVERY_BYTES)
        kept = [line for line in lines if line.step is None or line.step.step % stride == 0]
        data = b"".join(encode(line) + b"\n" for line in kept)
        if not data:
            return
        with self._health.writing(self._path):
            self._append(b"\n" + data if self._torn else data)

    def _append(self, data: bytes) -> None:
        self._torn = True
        view = memoryview(data)
        while view:
            written = self._file.write(view) or 0
            self._written += written
            view = view[written:]
        self._torn = False


def is_torn(path: Path) -> bool:
    """Whether the last line of ``path`` has no end: its writer was killed, or the disk is full.
    The next line must begin anew, so that a reader only skips the torn one."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
