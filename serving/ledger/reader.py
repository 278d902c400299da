"""Reads a ledger, while it is being written or later. Lines that are cut short are skipped, and so
are those that aren't entries of this version."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from trainmesh.serving.ledger.entry import LedgerEntry
from trainmesh.serving.ledger.segments import Segment, segments

__all__ = ["entries", "find_lines", "read_lines"]

MAX_FOUND = 1000
"""Lines of one request, one for each attempt; more come only from a client that uses one id for
everything."""


def read_lines(path: Path) -> Iterator[bytes]:
    """All lines of a ledger's folder, or of one segment: worker by worker, oldest first."""
    paths = [segment.path for segment in segments(path)] if path.is_dir() else [path]
    for each in paths:
        try:
            with each.open("rb") as file:
                yield from (line[:-1] for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            continue  # it was the oldest and has been removed since


def entries(lines: Iterable[bytes]) -> Iterator[LedgerEntry]:
    """The entries of those lines that hold one."""
    decode = msgspec.json.Decoder(LedgerEntry).decode
    for line in lines:
        try:
            yield decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # the end of a line that a full disk cut


def find_lines(folder: Path, request_id: str) -> list[bytes]:
    """The newest lines on ``request_id``, oldest of them first. It may be our id of a request, or
    the client's own, which several requests may have.

    Segments are searched from the newest. For an id of ours no further than the one before the
    first hit: the attempts of one request are close together.
    """
    text = msgspec.json.encode(request_id)
    newest = sorted(segments(folder), key=_age, reverse=True)
    needle = b'"request_id":' + text
    for segment in newest:
        if found := _search(segment.path, needle):
            before = Segment.at(folder, segment.worker, segment.number - 1).path
            return (_search(before, needle) + found)[-MAX_FOUND:]
    found = []
    for segment in newest:
        found = _search(segment.path, b'"client_id":' + text) + found
        if len(found) >= MAX_FOUND:
            break
    return found[-MAX_FOUND:]


def _age(segment: Segment) -> tuple[float, int]:
    """Time of the last write; file systems round it, so equal ones are told apart by number."""
    try:
        return segment.path.stat().st_mtime, segment.number
    except FileNotFoundError:
        return 0.0, segment.number


def _search(path: Path, needle: bytes) -> list[bytes]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return list(_hits(data, needle))[-MAX_FOUND:]
    except (FileNotFoundError, ValueError):
        return []  # removed since, or empty


def _hits(data: mmap.mmap, needle: bytes) -> Iterator[bytes]:
    at = data.find(needle)
    while at >= 0:
        end = data.find(b"\n", at)
        if end < 0:
            return  # it is still being written
        yield data[data.rfind(b"\n", 0, at) + 1 : end]
        at = data.find(needle, end)
