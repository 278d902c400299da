"""The report of a run: ``report.json`` for scripts, ``report.html`` for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from trainmesh.errors import ConfigError, WireError
from trainmesh.launcher.output_file import write_output
from trainmesh.launcher.report.analysis import analyse
from trainmesh.launcher.report.analysis_types import RunAnalysis
from trainmesh.launcher.report.findings import Headline, headline
from trainmesh.launcher.report.report_html import page
from trainmesh.launcher.report.run_sample import collect
from trainmesh.types import RecordLine
from trainmesh.wire import decode

__all__ = ["SCHEMA", "Report", "load_report", "write_report"]

SCHEMA = "trainmesh.report/1"
MAX_REPORT_BYTES = 64 * 1024 * 1024
"""Of a report.json: far more than `trainmesh report` writes."""
MAX_LINE_BYTES = 16 * 1024 * 1024
"""Of a record: a report of a node with its ranks is some kB."""


class Report(Struct, frozen=True, kw_only=True):
    """The contents of ``report.json``; docs/report.md describes the fields. ``schema`` changes when
    a field is removed or changes its meaning."""

    schema: str
    headline: Headline
    run: RunAnalysis


class _Schema(Struct, frozen=True):
    """The one field that every version of a report has."""

    schema: str


class _Lines:
    """The lines of a record; counts the damaged ones (a run may end in the middle of one)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damaged = 0

    def __iter__(self) -> Iterator[RecordLine]:
        try:
            with self._path.open("rb") as file:
                yield from self._read(file)
        except FileNotFoundError:
            return

    def _read(self, file: BinaryIO) -> Iterator[RecordLine]:
        while data := file.readline(MAX_LINE_BYTES):
            if len(data) == MAX_LINE_BYTES:  # a damaged file may be one endless line
                while data and not data.endswith(b"\n"):
                    data = file.readline(MAX_LINE_BYTES)
                self.damaged += 1
                continue
            try:
                yield decode(data, RecordLine, what=self._path.name, max_bytes=MAX_LINE_BYTES)
            except WireError:
                self.damaged += 1


def write_report(
    record: Path, directory: Path, told: Sequence[RecordLine] = (), num_steps: int = 0
) -> None:
    """Write the report of the run recorded in ``record`` into ``directory``.

    A missing or damaged record gives a report that says so.

    Args:
        told: What the launcher knows beside the record, which may be on a full disk.
        num_steps: How many steps the job is known to have done at least, recorded or not.

    Raises:
        OSError, ConfigError: the directory can't be made, or a file not be written.
    """
    lines = _Lines(record)
    sample = collect(chain(lines, told))
    run = analyse(sample, corrupt_lines=lines.damaged, num_known_steps=num_steps)
    report = Report(schema=SCHEMA, headline=headline(run), run=run)
    directory.mkdir(parents=True, exist_ok=True)
    document = msgspec.json.format(msgspec.json.encode(report), indent=1)
    write_output(directory / "report.json", document, what="--report")
    write_output(directory / "report.html", page(run, report.headline).encode(), what="--report")


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
        schema = decode(data, _Schema, what=str(path), max_bytes=MAX_REPORT_BYTES).schema
        if schema != SCHEMA:
            raise ConfigError(f"{path}: schema {schema!r}, but this trainmesh reads {SCHEMA!r}")
        return decode(data, Report, what=str(path), max_bytes=MAX_REPORT_BYTES)
    except WireError as error:
        raise ConfigError(f"not a report: {error}") from error
