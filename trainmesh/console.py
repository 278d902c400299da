"""Words on standard error, from processes that go on whether or not anybody hears them."""

from __future__ import annotations

import sys

__all__ = ["NOTE", "clean", "note", "say", "write_error"]

NOTE = "note: "
"""Begins a line in a log that tells what has happened, and is no reason for its writer's end."""


def say(text: str) -> None:
    """One line of ours on stderr; never raises."""
    write_error(f"trainmesh: {text}\n")


def note(text: str) -> None:
    """What a process of ours has met and goes on after, in its log; never raises, also where the
    disk is full."""
    write_error("".join(f"{NOTE}{line}\n" for line in text.splitlines()))


def clean(text: str) -> str:
    """``text`` without control characters, line ends and parts of characters: what a file or a job
    is called must neither steer a terminal nor break a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def write_error(text: str) -> None:
    """``text`` as it is on stderr; lost where that is closed, full or a pipe without a reader."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
