"""One process of the control plane on this node, and when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trainmesh

__all__ = ["Process", "PythonProcess", "Service", "last_line", "restart_delay_s"]

NICENESS = 5
"""Training comes first where the CPUs are busy."""
STOP_S = 4.0
"""Agent and coordinator end within 3 s of SIGTERM; after this they are killed."""
MAX_RESTARTS = 5
RESTART_WINDOW_S = 60.0
MAX_DELAY_S = 5.0


class Process(Protocol):
    """A process that can be started again; one thread at a time uses it."""

    def start(self) -> None:
        """Start it, for the first time or again; does not wait until it is ready."""
        ...

    def poll(self) -> int | None:
        """The exit code once it has ended; None while it runs or was never started."""
        ...

    def stop(self) -> None:
        """End it; bounded, does nothing if it has ended."""
        ...


@dataclass(frozen=True)
class Service:
    """A process to keep running, what it is called, and where its output goes."""

    name: str
    log: Path
    process: Process


class PythonProcess:
    """``python -m module`` in a session of its own. It ends on SIGTERM, and by itself when the
    launcher is gone: its standard input is a pipe that only the launcher holds open."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._module = module
        self._environment = python_environment(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.stop()
        with self._log.open("ab") as log:
            # -P and a working directory without modules: one of the user's that is called like
            # one of the standard library's is not imported by mistake.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._log.parent,
                start_new_session=True,
            )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)

    def poll(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def python_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` in which a Python process finds this trainmesh, installed or not."""
    result = dict(environment)
    root = str(Path(trainmesh.__file__).parent.parent)
    if root not in sys.path[1:]:  # the first entry is this process's own, and is not passed on
        result["PYTHONPATH"] = os.pathsep.join(filter(None, [root, result.get("PYTHONPATH")]))
    return result


def restart_delay_s(ends_s: Sequence[float], now_s: float) -> float | None:
    """Seconds to wait before a process that has ended is started again.

    Args:
        ends_s: When it has ended so far, this time included (monotonic seconds).
        now_s: Now, on the same clock.

    Returns:
        A delay that doubles with each recent end; None if there were too many of them.
    """
    recent = sum(now_s - end_s < RESTART_WINDOW_S for end_s in ends_s)
    if recent > MAX_RESTARTS:
        return None
    return min(MAX_DELAY_S, 0.1 * 2.0**recent)


def last_line(log: Path) -> str:
    """The last line that is not empty at the end of a log; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4_096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
