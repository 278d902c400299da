"""Append to a run's record, in bounded space."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from trainmesh.types import RecordLine
from trainmesh.wire import encode

__all__ = ["RecordWriter"]

HALVE_EVERY_BYTES = 64 * 1024 * 1024


class RecordWriter:
    """Writes RecordLines. Each 64 MB halves the steps that are kept (every 2nd, 4th, ...; the
    same ones of every rank), so that a run of any length leaves a record that can be read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._written = path.stat().st_size

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
        stride = 1 << (self._written // HALVE_EVERY_BYTES)
        for line in lines:
            if line.step is None or line.step.step % stride == 0:
                self._written += self._file.write(encode(line) + b"\n")
        self._file.flush()
