"""What a person sees while the job runs: one live line, and each event as a line of its own.

All of it goes to stderr. In a terminal the live line is the bottom row, which is taken out of
the scrolling region, so that it never mixes with what the script prints; a launcher that is
killed with SIGKILL leaves the region behind (``reset`` undoes it). Without a terminal there is
no live line: important events are plain lines, and with mode ``on`` a line of numbers comes
every few seconds.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from typing import TextIO

from trainmesh.console import clean
from trainmesh.coordinator.tuning.comm_config import describe_comm_config
from trainmesh.rundir import RunDir
from trainmesh.types import Algorithm, Event, JobStatus
from trainmesh.units import duration, percent

__all__ = [
    "BottomLine",
    "Progress",
    "event_line",
    "new_events",
    "describe_plan",
    "status_line",
    "describe_step_time",
    "describe_waiting",
]

REFRESH_S = 0.5
"""Of the live lines: what people still see as steady."""
PLAIN_LINE_EVERY_S = 5.0
"""In a log file, which somebody reads later."""
STOP_S = 0.4
"""For the thread to leave the terminal as it was."""
MIN_ROWS = 4
"""Of a terminal; in a smaller one the job's own output would have no room."""
MAX_WARNED = 64
"""Sentences that are kept to be shown once more at the end."""
IMPORTANT = ("plan", "switch", "revert", "mismatch", "rejected", "warning")


def status_line(status: JobStatus) -> str:
    """Step, loss, step time, share of communication and plan, on one line."""
    if not status.world_size:
        return "trainmesh: waiting for the ranks"
    plan = describe_plan(status)
    loss = f"loss {status.loss:.4f}, " if status.loss is not None else ""
    return clean(
        f"trainmesh: step {status.step}, {loss}{describe_step_time(status)}, "
        f"{describe_waiting(status)}, plan {plan}"
    )


def describe_step_time(status: JobStatus) -> str:
    """How long the newest step took, if one is over."""
    if status.step_time_s is None:
        return "no step is over yet"
    return f"{duration(status.step_time_s)} a step"


def describe_waiting(status: JobStatus) -> str:
    """The share of a step that waits for communication, as far as it is known."""
    if status.world_size == 1:
        return "one rank, which has nobody to communicate with"
    if status.exposed_share is None:
        return "waiting on communication not measured yet"
    return f"{percent(status.exposed_share)} of it waiting on communication"


def describe_plan(status: JobStatus) -> str:
    """What is in force, as in ``ring, fused to 8.00 MB, bf16``."""
    algorithm = status.plan.algorithm if status.plan is not None else Algorithm.NATIVE
    return describe_comm_config(algorithm, status.fusion_bytes, status.codec)


def event_line(event: Event) -> str:
    """``trainmesh: step 64: ...``; some events begin with their step themselves."""
    step = "" if event.text.startswith("step ") else f"step {event.step}: "
    return clean(f"trainmesh: {step}{event.text}")


def new_events(status: JobStatus, shown: Event | None) -> list[Event]:
    """The important events after ``shown``; a status holds the newest events of its job."""
    events = list(status.events)
    if shown in events:
        events = events[events.index(shown) + 1 :]
    return [event for event in events if event.kind in IMPORTANT]


class BottomLine:
    """The last row of a terminal, kept out of the way of everything that is printed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._size: os.terminal_size | None = None

    def draw(self, text: str) -> None:
        """Show ``text``, cut to the width; show nothing if there are too few rows."""
        size = os.get_terminal_size(self._stream.fileno())
        if size.lines < MIN_ROWS:
            return
        codes = ""
        if size != self._size:
            # A new line first, so that the cursor is not on the row that is taken away.
            codes = f"\n\x1b7\x1b[1;{size.lines - 1}r\x1b8\x1b[1A"
            self._size = size
        shown = text[: size.columns - 1]
        self._stream.write(f"{codes}\x1b7\x1b[{size.lines};1H\x1b[2K{shown}\x1b8")
        self._stream.flush()

    def close(self) -> None:
        """Give the row back."""
        if self._size is not None:
            self._stream.write(f"\x1b7\x1b[{self._size.lines};1H\x1b[2K\x1b[r\x1b8")
            self._stream.flush()
            self._size = None


class Progress:
    """Shows ``run``'s status from ``start`` to ``stop``.

    Args:
        run: The run directory whose status file is read.
        mode: ``auto``, ``on`` or ``off``.
        stream: Where to write; standard error by default.
    """

    def __init__(self, run: RunDir, mode: str, stream: TextIO | None = None) -> None:
        self._run = run
        self._mode = mode
        self._stream = stream if stream is not None else sys.stderr
        terminal = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._bottom = BottomLine(self._stream) if terminal else None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress-line", daemon=True)
        self._shown: Event | None = None
        self.warned: deque[str] = deque(maxlen=MAX_WARNED)
        """The newest warnings that were shown."""
        self._next_line_s = 0.0

    def start(self) -> None:
        """Begin in a thread of its own; does nothing with mode ``off``."""
        if self._mode != "off":
            self._thread.start()

    def stop(self) -> None:
        """Show what is new, once more, and end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def _show(self) -> None:
        try:
            while not self._stopping.wait(REFRESH_S):
                self._update()
            self._update()
            if self._bottom is not None:
                self._bottom.close()
        except (OSError, ValueError):
            pass  # stderr is gone or closed: there is nobody left to tell

    def _update(self) -> None:
        status = self._run.read_status()
        if status is None:
            return
        for event in new_events(status, self._shown):
            self._say(event_line(event))
            if event.kind == "warning":
                self.warned.append(event.text)
        if status.events:
            self._shown = status.events[-1]
        if self._bottom is not None:
            self._bottom.draw(status_line(status))
        elif self._mode == "on" and status.step and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S
            self._say(status_line(status))

    def _say(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()
