"""What a person sees while the job runs: one live line, and each event as a line of its own.

All of it goes to stderr. Without a terminal there is no live line: events are plain lines, and
with mode ``on`` a line of numbers comes every few seconds.
"""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trainmesh.errors import WireError
from trainmesh.launcher.format import duration, percent
from trainmesh.rundir import RunDir
from trainmesh.types import Event, JobStatus
from trainmesh.wire import decode

__all__ = ["Progress", "status_line"]

REFRESH_S = 0.5
PLAIN_LINE_EVERY_S = 5.0
IMPORTANT = ("plan", "switch", "revert", "mismatch", "rejected", "warning", "coordinator", "agent")


def status_line(status: JobStatus) -> str:
    """Step, loss, step time, share of communication and plan, on one line."""
    plan = status.plan.algorithm if status.plan is not None else "native"
    loss = f"loss {status.loss:.4f}, " if status.loss is not None else ""
    return (
        f"step {status.step}, {loss}{duration(status.step_time_s)} a step, "
        f"{percent(status.exposed_share)} waiting on communication, plan {plan}"
    )


class Progress:
    """Shows ``run``'s status from ``start`` to ``stop``; ``mode`` is auto or on."""

    def __init__(self, run: RunDir, mode: str, console: Console | None = None) -> None:
        self._run = run
        self._mode = mode
        self._console = console or Console(stderr=True, highlight=False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress-line", daemon=True)
        self._shown: Event | None = None
        self._next_line_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=1.0)

    def _show(self) -> None:
        if self._console.is_terminal:
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                self._loop(live)
        else:
            self._loop(None)

    def _loop(self, live: Live | None) -> None:
        while not self._stopping.wait(REFRESH_S):
            self._update(live)
        self._update(live)

    def _update(self, live: Live | None) -> None:
        try:
            status = decode(self._run.status.read_bytes(), JobStatus, what="status")
        except (OSError, WireError):
            return
        for event in self._new_events(status):
            # Not through rich's wrapping: a line of a log stays one line.
            self._console.print(
                f"trainmesh: step {event.step}: {event.text}", markup=False, soft_wrap=True
            )
        if live is not None:
            live.update(Text(f"trainmesh: {status_line(status)}", no_wrap=True), refresh=True)
        elif self._mode == "on" and status.step and time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S
            self._console.print(f"trainmesh: {status_line(status)}", markup=False, soft_wrap=True)

    def _new_events(self, status: JobStatus) -> list[Event]:
        """Important events that have not been shown; the status holds the newest ones."""
        events = list(status.events)
        if self._shown in events:
            events = events[events.index(self._shown) + 1 :]
        if status.events:
            self._shown = status.events[-1]
        return [event for event in events if event.kind in IMPORTANT]
