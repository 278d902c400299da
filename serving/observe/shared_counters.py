"""Shared counters: counters that all processes of one router share through a mapped file.

Every worker has a row of cells that only it writes; readers add the rows up. A cell is an aligned
word, which x86-64 and arm64 write at once, so no lock is needed: a reader sees each cell as it was
or as it is, and different cells at slightly different times.

File::

    8 bytes   magic "TMBOARD1"
    8 bytes   length of the header that follows
    header    JSON: generation, rows, names (``cells.Names``), then zeros up to a page
    rows      ``rows`` times ``CellLayout.num_cells`` words of 8 bytes

A reload makes a new file with the next generation. Counters of names that stay are carried over
twice: by ``create``, so that a reader never sees them go back, and by the worker when it moves
(``WorkerRow.adopt``), so that none is lost in between.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.rundir import write_atomically
from trainmesh.serving.observe.cells import CellLayout, Names
from trainmesh.wire import decode, encode

__all__ = ["SharedCounters", "WorkerRow"]

MAGIC = b"TMBOARD1"
PAGE = 4096
MAX_HEADER_BYTES = 64 << 20


class Header(Struct, frozen=True):
    """What a counters file is for."""

    generation: int
    rows: int
    names: Names


class WorkerRow:
    """One worker's cells. ``cells`` has them as integers, ``reals`` the same bytes as floats."""

    __slots__ = ("cells", "layout", "reals")

    def __init__(self, layout: CellLayout, data: memoryview) -> None:
        self.layout = layout
        self.cells: memoryview[int] = data.cast("q")
        self.reals: memoryview[float] = data.cast("d")

    def adopt(self, old: WorkerRow) -> None:
        """Take over the values of every name that this row still has (gauges too: what is in
        flight stays in flight)."""
        blocks = dict(old.layout.blocks())
        for key, offsets in self.layout.blocks():
            for ours, theirs in zip(offsets, blocks.get(key, ()), strict=False):
                self.cells[ours] = old.cells[theirs]

    def clear_gauges(self) -> None:
        """Forget what was in flight: the worker is gone. Counters stay."""
        for offset in self.layout.gauges:
            self.cells[offset] = 0


class SharedCounters:
    """A mapped file of counters. Close it when done; rows must not be used after that."""

    def __init__(self, path: Path, header: Header, mapping: mmap.mmap, start: int) -> None:
        self.path = path
        self.generation = header.generation
        self.layout = CellLayout(header.names)
        self._mapping = mapping
        size = 8 * self.layout.num_cells
        whole = memoryview(mapping)
        self.rows = tuple(
            WorkerRow(self.layout, whole[start + index * size : start + (index + 1) * size])
            for index in range(header.rows)
        )

    @classmethod
    def create(
        cls,
        path: Path,
        names: Names,
        *,
        workers: int,
        generation: int = 1,
        old: SharedCounters | None = None,
    ) -> SharedCounters:
        """Make the file, all zero or with what ``old`` counted under the same names.

        There are never fewer rows than before, so that counters of a row stay in the sum.

        Raises:
            OSError: the file can't be written.
        """
        header = Header(generation, max(workers, len(old.rows) if old else 0), names)
        text = encode(header)
        start = -(-(16 + len(text)) // PAGE) * PAGE
        image = bytearray(start + header.rows * 8 * CellLayout(names).num_cells)
        image[: 16 + len(text)] = MAGIC + len(text).to_bytes(8, "little") + text
        if old is not None:
            _carry(old, names, memoryview(image)[start:], workers)
        write_atomically(path, bytes(image))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> SharedCounters:
        """Map an existing file.

        Raises:
            WireError: it is missing, damaged or not a counters file.
        """
        try:
            with path.open("r+b") as file:
                mapping = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise WireError(f"{path}: can't map the counters file: {error}") from error
        try:
            header, start = _read_header(path, mapping)
        except WireError:
            mapping.close()
            raise
        return cls(path, header, mapping, start)

    def row(self, worker: int) -> WorkerRow:
        """The row that worker number ``worker`` writes."""
        return self.rows[worker]

    def total(self, offset: int) -> int:
        """Sum of an integer cell over all rows."""
        return sum(row.cells[offset] for row in self.rows)

    def total_real(self, offset: int) -> float:
        """Sum of a float cell over all rows."""
        return sum(row.reals[offset] for row in self.rows)

    def others(self, offset: int, worker: int) -> int:
        """Sum of an integer cell over the rows of all workers but one."""
        return self.total(offset) - self.rows[worker].cells[offset]

    def close(self) -> None:
        """Unmap it."""
        for row in self.rows:
            row.cells.release()
            row.reals.release()
        self.rows = ()
        self._mapping.close()

    def remove(self) -> None:
        """Remove the file; whoever has it mapped keeps it."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


def _carry(old: SharedCounters, names: Names, data: memoryview, workers: int) -> None:
    layout = CellLayout(names)
    size = 8 * layout.num_cells
    for index, before in enumerate(old.rows):
        row = WorkerRow(layout, data[index * size : (index + 1) * size])
        row.adopt(before)
        if index >= workers:
            row.clear_gauges()  # nobody will


def _read_header(path: Path, mapping: mmap.mmap) -> tuple[Header, int]:
    if mapping[:8] != MAGIC:
        raise WireError(f"{path}: not a counters file of this version")
    length = int.from_bytes(mapping[8:16], "little")
    if length > min(MAX_HEADER_BYTES, len(mapping) - 16):
        raise WireError(f"{path}: the counters file is damaged: a header of {length} bytes")
    text = mapping[16 : 16 + length]
    header = decode(text, Header, what=str(path), max_bytes=MAX_HEADER_BYTES)
    start = -(-(16 + length) // PAGE) * PAGE
    expected = start + header.rows * 8 * CellLayout(header.names).num_cells
    if len(mapping) != expected:
        raise WireError(f"{path}: the counters file has {len(mapping)} bytes instead of {expected}")
    return header, start
