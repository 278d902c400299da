"""Messages on standard error, from processes that go on whether or not anybody reads them."""

from __future__ import annotations

import sys

from trainmesh.errors import TrainmeshError

__all__ = ["NOTE", "clean", "note", "say", "say_error", "write_error"]

NOTE = "note: "
"""Begins a log line about something that happened but did not end its writer."""


def say(text: str) -> None:
    """One line of ours on stderr; never raises."""
    write_error(f"trainmesh: {text}\n")


def say_error(error: TrainmeshError | OSError) -> int:
    """Say in one line what has ended this process. For an OSError (a disk is full, a file or a
    process can't be had) a traceback would explain no more.

    Returns:
        The exit code.
    """
    if isinstance(error, TrainmeshError):
        say(f"error: {clean(str(error))}")
        return error.exit_code
    where = f"{error.filename}: " if error.filename is not None else ""
    say(f"error: {clean(where)}{error.strerror or error}")
    return 1


def note(text: str) -> None:
    """Log something that a process of ours has met and survives; never raises, even if the disk is
    full."""
    write_error("".join(f"{NOTE}{line}\n" for line in text.splitlines()))


def clean(text: str) -> str:
    """``text`` without control characters, line ends and parts of characters: the name of a file or
    a job must neither control a terminal nor break a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def write_error(text: str) -> None:
    """Write ``text`` unchanged to stderr; it is lost if that is closed, full or a pipe without a
    reader."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
