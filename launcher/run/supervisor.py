"""Owns the control-plane processes of this node: embedded etcd, coordinator, agent.

One thread starts, watches and ends them, so that workers never wait for them. A process that ends
is started again, after longer and longer waits. Training goes on in any case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from trainmesh.clock import Clock, SystemClock
from trainmesh.errors import WireError
from trainmesh.launcher.run import signals
from trainmesh.launcher.run.service import (
    MAX_RESTARTS,
    RESTART_WINDOW_S,
    Service,
    log_size,
    restart_delay_s,
    why_ended,
)
from trainmesh.launcher.run.troubles import Troubles
from trainmesh.process_health import ProcessHealth
from trainmesh.wire import decode

__all__ = ["ServiceKeeper", "Supervisor"]

POLL_S = 0.1
"""Between two looks at the processes: how soon an end is noticed."""
CHECK_EVERY_S = 1.0
"""Between two looks at what costs more than a poll."""
STOP_S = 20.0
"""More than the stop times of all services together."""


class Supervisor:
    """Keeps ``services`` running from ``start`` to ``stop``.

    Args:
        services: In the order in which they start; they end in the reverse order.
        prepare: Called in the supervisor's thread before the first one starts.
        troubles: Where it is kept what is wrong.
        restore: Called about once a second; true if it has made the place in which the services
            work anew, so that they have to start again.
        clock: By which it is decided when to look and when to start again.
    """

    def __init__(
        self,
        services: Sequence[Service],
        prepare: Callable[[], object],
        troubles: Troubles,
        restore: Callable[[], bool] = lambda: False,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._prepare = prepare
        self._restore = restore
        self._troubles = troubles
        self._keepers = [ServiceKeeper(service, troubles) for service in services]
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
        next_check_s = 0.0
        try:
            while not self._stopping.is_set():
                now_s = self._clock.monotonic_s()
                if now_s >= next_check_s:
                    next_check_s = now_s + CHECK_EVERY_S
                    self._check(now_s)
                for keeper in self._keepers:
                    keeper.look(now_s)
                self._stopping.wait(POLL_S)
        finally:
            for keeper in self._keepers:
                keeper.look_at_end()
            for keeper in reversed(self._keepers):
                keeper.service.process.stop()
            self._troubles.look(self._clock.monotonic_s(), at_end=True)

    def _check(self, now_s: float) -> None:
        self._troubles.look(now_s)
        if self._restore():
            for keeper in self._keepers:
                keeper.start_again(now_s)


class ServiceKeeper:
    """Starts one service, and again whenever it has ended."""

    def __init__(self, service: Service, troubles: Troubles) -> None:
        self.service = service
        self._troubles = troubles
        self._running = False
        self._started_s = 0.0
        self._log_begin = 0
        self._due_s = 0.0
        """When it is to be started (monotonic seconds)."""
        self._quick_ends = 0
        self._told = ""
        """Of its last end."""
        self._abouts: set[str] = set()
        """What it has told of."""

    def look(self, now_s: float) -> None:
        """Do what is due at ``now_s``."""
        if not self._running:
            if now_s >= self._due_s:
                self._start(now_s)
            return
        for line in self.service.process.heard():
            self._hear(line, now_s)
        code = self.service.process.poll()
        if code is not None:
            self._ended(f"ended with {_describe_exit(code)}", self._why(code), now_s)
        elif self._quick_ends and now_s - self._started_s >= RESTART_WINDOW_S:
            self._quick_ends = 0
            self._troubles.set(self.service.name, self.service.name, "", now_s)

    def look_at_end(self) -> None:
        """Report what hasn't been reported once no process is started any more. A signal that ends
        a launch, such as Ctrl-C, may also reach a process of ours just as it starts; that is not
        the process's fault."""
        code = self.service.process.poll() if self._running else None
        if code is not None and -code not in signals.ALL_ENDING:
            self._troubles.happened(
                f"the {self.service.name} ended with {_describe_exit(code)} before the job was over"
                f"{self._why(code)}"
            )

    def start_again(self, now_s: float) -> None:
        """End it, and start it at the next ``look``."""
        self.service.process.stop()
        self._running = False
        self._due_s = now_s

    def _hear(self, line: bytes, now_s: float) -> None:
        try:
            told = decode(line, ProcessHealth, what=self.service.name)
        except WireError:
            return  # something that a library has printed
        self._abouts.add(told.about)
        self._troubles.set(told.about, self.service.name, told.text, now_s)

    def _start(self, now_s: float) -> None:
        self._started_s = now_s
        self._log_begin = log_size(self.service.log)
        try:
            self.service.process.start()
            self._running = True
        except OSError as error:
            self._ended(f"can't be started ({error.strerror})", "", now_s)

    def _why(self, code: int) -> str:
        words = why_ended(code, self.service.log, self._log_begin)
        return f": {words}" if words else ""

    def _ended(self, how: str, why: str, now_s: float) -> None:
        self._running = False
        if now_s - self._started_s >= RESTART_WINDOW_S:
            self._quick_ends = 0
        self._quick_ends += 1
        self._due_s = now_s + restart_delay_s(self._quick_ends)
        name = self.service.name
        for about in self._abouts:
            self._troubles.set(about, name, "", now_s)
        if self._quick_ends <= MAX_RESTARTS:
            text = f"the {name} {how} and is started again{why}"
            self._troubles.happened(text, again=text == self._told and self._quick_ends > 1)
            self._told = text
            return
        text = f"the {name} keeps ending and is tried again about once a minute, without new plans"
        self._troubles.set(name, name, f"{text}; training goes on; it {how}{why}", now_s)


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
