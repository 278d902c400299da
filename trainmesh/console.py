"""Messages on standard error, from processes that go on whether or not anybody reads them."""

from __future__ import annotations

import sys

__all__ = ["NOTE", "clean", "note", "say", "write_error"]

NOTE = "note: "
"""Begins a log line about something that happened but did not end its writer."""


def say(text: str) -> None:
    """One line of ours on stderr; never raises."""
    write_error(f"trainmesh: {text}\n")


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
