"""The report of a run: ``report.json`` for scripts, ``report.html`` for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from trainmesh.errors import ConfigError, WireError
from trainmesh.launcher.analysis import RunAnalysis, analyse
from trainmesh.rundir import write_atomically
from trainmesh.types import RecordLine
from trainmesh.wire import decode

__all__ = ["SCHEMA", "Report", "load_report", "write_report"]

SCHEMA = "trainmesh.report/1"
MAX_REPORT_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024


class Report(Struct, frozen=True, kw_only=True):
    """What ``report.json`` holds; docs/report.md describes the fields. ``schema`` changes when
    a field is removed or changes its meaning."""

    schema: str
    run: RunAnalysis


class _Lines:
    """The lines of a record; counts the damaged ones (a run may end in the middle of one)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damaged = 0

    def __iter__(self) -> Iterator[RecordLine]:
        try:
            with self._path.open("rb") as file:
                for data in file:
                    try:
                        yield decode(
                            data, RecordLine, what=self._path.name, max_bytes=MAX_LINE_BYTES
                        )
                    except WireError:
                        self.damaged += 1
        except FileNotFoundError:
            return


def write_report(record: Path, directory: Path) -> None:
    """Write the report of the run recorded in ``record`` into ``directory``.

    A missing or damaged record gives a report that says so.

    Raises:
        OSError: the directory can't be written.
    """
    from trainmesh.launcher.report_html import page

    lines = _Lines(record)
    run = analyse(lines)
    if lines.damaged:
        text = f"{lines.damaged} lines of the record were damaged and left out."
        run = msgspec.structs.replace(run, missing=(*run.missing, text))
    directory.mkdir(parents=True, exist_ok=True)
    report = msgspec.json.encode(Report(schema=SCHEMA, run=run))
    write_atomically(directory / "report.json", msgspec.json.format(report, indent=1))
    write_atomically(directory / "report.html", page(run).encode())


def load_report(directory: Path) -> Report:
    """Read ``directory/report.json``.

    Raises:
        ConfigError: there is none, or it is not a report of this version.
    """
    path = directory / "report.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; make one with trainmesh launch --report {directory} ..."
        ) from error
    try:
        report = decode(data, Report, what=str(path), max_bytes=MAX_REPORT_BYTES)
    except WireError as error:
        raise ConfigError(f"not a report: {error}") from error
    if report.schema != SCHEMA:
        raise ConfigError(f"{path}: schema {report.schema!r}, this trainmesh reads {SCHEMA!r}")
    return report
