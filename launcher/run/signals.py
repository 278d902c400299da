"""Which signals end a launch, and how, outside of the time in which torchrun handles them."""

from __future__ import annotations

import _imp
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = [
    "ALL_ENDING",
    "Ended",
    "check",
    "deferring",
    "end_by",
    "end_undisturbed",
    "exiting",
    "hold",
    "raising",
]

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
ALL_ENDING = (signal.SIGINT, *ENDING)
AGAIN_S = 1.5
"""Longer than it takes from the exception to the clean-up."""
_received: list[int] = []
_deferred: list[int] | None = None
"""What came within ``deferring``; None outside of it."""
_timers: list[threading.Timer] = []


class Ended(SystemExit):
    """A signal ends the process, after its clean-up."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def exiting() -> Iterator[None]:
    """Ctrl-C ends the process at once, without a message. This is for imports, before anything has
    been started: there, a KeyboardInterrupt is a traceback, or turns into an ImportError."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or not _in_main_thread():
        yield  # ignored, or somebody else's
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_by(number: int) -> NoReturn:
    """End this process by a signal, as if there was no handler: whoever waits for it can see why
    it ended, and a shell's loop ends with it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # where it is blocked, or we are process 1 of a container


@contextmanager
def raising() -> Iterator[None]:
    """Signals that would end the process at once raise KeyboardInterrupt or ``Ended`` instead, so
    that what was started is cleaned up. Torchrun replaces these handlers by its own when it
    starts workers. On exit the handlers are as they were, except after ``hold``: what is left then
    is the end of the process, which the first signal, or the workers, have given its code.

    Python drops an exception that is raised in a destructor or in a callback of the importer. So a
    signal comes again after ``AGAIN_S``, to whoever handles it then, unless it has done its work:
    ``hold`` was called or the context left. ``check`` doesn't wait for that."""
    handled = ALL_ENDING
    before = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        if before[number] in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise)
    try:
        yield
    finally:
        _settle()
        for number, handler in before.items():
            if not _is_held(number):
                signal.signal(number, handler)


@contextmanager
def deferring() -> Iterator[None]:
    """A signal that comes inside this context raises at its end. The context is for code that makes
    something and hands it to the owner that will remove it; a signal between the two would leave it
    behind."""
    global _deferred
    _deferred = []
    try:
        yield
    finally:
        came, _deferred = _deferred, None
        if came:
            _raise(came[0], None)


def check() -> None:
    """Raise what a signal was to raise, if that was dropped."""
    if _received:
        _raise(_received[0], None)


def hold() -> None:
    """From now on these signals do nothing, so that a bounded clean-up runs to its end. Not to be
    called from within an import."""
    _settle()
    for number in ALL_ENDING:
        # Not SIG_IGN: a process that is started now would inherit that.
        signal.signal(number, _nothing)
    _free_imports()


def end_undisturbed() -> None:
    """The process ends now, by the code that it has. Held signals are ignored from here on: Python
    resets handlers before it takes its modules apart."""
    for number in ALL_ENDING:
        if _is_held(number):
            signal.signal(number, signal.SIG_IGN)


def _is_held(number: int) -> bool:
    return signal.getsignal(number) is _nothing


def _raise(number: int, frame: FrameType | None) -> None:
    if _deferred is not None:
        _deferred.append(number)
        return
    if _received:
        number = _received[0]  # the first one is what ends us; others come while it does
    _settle()
    _received.append(number)
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    _timers.append(again)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Ended(number)


def _settle() -> None:
    """What was received is done with."""
    _received.clear()
    while _timers:
        _timers.pop().cancel()


def _free_imports() -> None:
    """Let other threads import. If an exception is raised just after the importer has taken its
    lock, this thread keeps the lock for ever, and every other thread's import would wait for
    ever."""
    try:
        while True:
            _imp.release_lock()
    except RuntimeError:
        pass  # this thread does not have it (any more)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
