"""Owns the control-plane processes of this node: embedded etcd, coordinator, agent.

They are started, watched and ended by one thread, so that workers never wait for them. One that
crashes is started again; one that keeps crashing is left alone. Training goes on in any case.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from trainmesh.launcher.service import Service, last_line, restart_delay_s

__all__ = ["Keeper", "Supervisor", "say"]

POLL_S = 0.1
STOP_S = 20.0
"""More than the stop times of all services together."""


def say(text: str) -> None:
    """One line on stderr."""
    print(f"trainmesh: {text}", file=sys.stderr, flush=True)


class Supervisor:
    """Keeps ``services`` running from ``start`` to ``stop``.

    Args:
        services: In the order in which they start; they end in the reverse order.
        prepare: Called in the supervisor's thread before the first one starts.
    """

    def __init__(self, services: Sequence[Service], prepare: Callable[[], object]) -> None:
        self._prepare = prepare
        self._keepers = [Keeper(service) for service in services]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start everything in the background; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End everything; bounded. May be called twice, or without ``start``."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        self._prepare()
        try:
            while not self._stopping.is_set():
                for keeper in self._keepers:
                    keeper.look(time.monotonic())
                self._stopping.wait(POLL_S)
        finally:
            for keeper in reversed(self._keepers):
                keeper.service.process.stop()


class Keeper:
    """Starts one service, and again when it has ended, until it has ended too often."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._running = False
        self._due_s: float | None = 0.0
        """When it is to be started (monotonic seconds); None if it is left alone."""
        self._ends_s: list[float] = []

    def look(self, now_s: float) -> None:
        """Do what is due at ``now_s``."""
        if self._running:
            code = self.service.process.poll()
            if code is not None:
                self._ended(f"ended with {_exit_words(code)}", now_s)
        elif self._due_s is not None and now_s >= self._due_s:
            self._start(now_s)

    def _start(self, now_s: float) -> None:
        try:
            self.service.process.start()
            self._running = True
        except OSError as error:
            self._ended(f"can't be started ({error.strerror})", now_s)

    def _ended(self, how: str, now_s: float) -> None:
        self._running = False
        self._ends_s.append(now_s)
        delay_s = restart_delay_s(self._ends_s, now_s)
        self._due_s = None if delay_s is None else now_s + delay_s
        words = last_line(self.service.log)
        why = f": {words}" if words else ""
        if delay_s is None:
            say(
                f"warning: the {self.service.name} {how} once too often and is left alone; "
                f"training goes on without new plans{why}"
            )
        else:
            say(f"the {self.service.name} {how} and is started again{why}")


def _exit_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
