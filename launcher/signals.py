"""Which signals end a launch, and how, outside of the time in which torchrun handles them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["INTERRUPTED", "check", "exiting", "hold", "raising"]

INTERRUPTED = 130
"""Exit code after Ctrl-C: what a shell reports for a program that SIGINT has ended."""
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
AGAIN_S = 1.5
"""Longer than it takes from the exception to the clean-up."""
_received: list[int] = []
_timers: list[threading.Timer] = []


@contextmanager
def exiting() -> Iterator[None]:
    """Ctrl-C ends the process on the spot. For the import of torch, before anything has been
    started: a KeyboardInterrupt in there can come out as an ImportError."""
    before = signal.signal(signal.SIGINT, _exit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def raising() -> Iterator[None]:
    """Signals that would end the process at once raise SystemExit (128 + number) instead, so
    that what was started is cleaned up. Torchrun replaces these handlers by its own when it
    starts workers. On exit the handlers are as they were.

    Python drops an exception that is raised in a destructor or in a callback of the importer. So a
    signal comes again after ``AGAIN_S``, to whoever handles it then, unless it has done its work:
    ``hold`` was called or the context left. ``check`` doesn't wait for that."""
    handled = (signal.SIGINT, *ENDING)
    before = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        if before[number] in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise)
    try:
        yield
    finally:
        _settle()
        for number, handler in before.items():
            signal.signal(number, handler)


def check() -> None:
    """Raise what a signal was to raise, if that was dropped."""
    if _received:
        _raise(_received[0], None)


def hold() -> None:
    """From now on these signals do nothing: a clean-up that is bounded runs to its end."""
    _settle()
    for number in (signal.SIGINT, *ENDING):
        # Not SIG_IGN: a process that is started now would inherit that.
        signal.signal(number, _nothing)


def _exit_now(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"trainmesh: interrupted\n")
    os._exit(INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    _settle()
    _received.append(number)
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    _timers.append(again)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _settle() -> None:
    """What was received is done with."""
    _received.clear()
    while _timers:
        _timers.pop().cancel()


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
