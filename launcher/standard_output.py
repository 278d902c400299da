"""Standard output whose errors name it.

An ``OSError`` of a write names no file, so "No space left on device" could be that of any file that
a command writes. And a library may drop it: argparse does so with its help.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["NAME", "install", "is_from", "problem"]

NAME = "standard output"


class _StandardOutput(io.FileIO):
    """The descriptor of ``stream``, which goes on to exist."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self._stream = stream  # it closes the descriptor when it goes

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = NAME
            _problems.append(error)
            raise


_problems: list[OSError] = []


def install() -> None:
    """Put one in the place of ``sys.stdout``, as buffered as that is. What it can't encode is
    written with backslashes: a file may be called what no character set holds, and standard error
    is so from the start."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        return
    raw = _StandardOutput(stream)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw) if not stream.write_through else raw,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def is_from(error: BaseException) -> bool:
    """Whether ``error`` is one of standard output."""
    return any(error is known for known in _problems)


def problem() -> OSError | None:
    """Why standard output did not take all that was printed; None if it did.

    What it could not be given goes nowhere from here on, so that nothing fails on it at exit.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        _problems.append(error)
    if not _problems:
        return None
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _problems.pop()
