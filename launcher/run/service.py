"""One process of the control plane on this node, and when it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trainmesh
from trainmesh.launcher.own_modules import environment_of_ours
from trainmesh.store.reasons import log_reason

__all__ = [
    "NICENESS",
    "MAX_RESTARTS",
    "RESTART_WINDOW_S",
    "Process",
    "PythonProcess",
    "Service",
    "log_size",
    "restart_delay_s",
    "why_ended",
]

NICENESS = 10
"""Added to the job's own niceness (which ``nice`` or a batch system may have raised), so that
training comes first if the CPUs are busy. Agent, coordinator and etcd then still get a tenth of a
core that training fills, which is more than they need, and no rank loses its turn to them."""
STOP_S = 4.0
"""Agent and coordinator end within 3 s of SIGTERM; after this they are killed."""
MAX_RESTARTS = 5
"""After so many ends in a row, one message says that the process keeps ending."""
RESTART_WINDOW_S = 60.0
"""One that has run for so long is well again."""
FIRST_DELAY_S = 0.2
"""Before a process is started again that has ended at once; doubled each time."""
MAX_DELAY_S = 60.0
"""A process that keeps ending costs at most one start a minute."""
MAX_HEARD_BYTES = 65_536
"""Of a line that a process of ours says; longer ones are not ours."""
PAGE_BYTES = 4096
"""The least that takes up room on a file system."""


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

    def heard(self) -> list[bytes]:
        """The lines it has written for the launcher since the last call; does not wait."""
        ...


@dataclass(frozen=True)
class Service:
    """A process to keep running, what it is called, and where its output goes."""

    name: str
    log: Path
    process: Process


class PythonProcess:
    """``python -m module`` in a session of its own. It ends on SIGTERM, and by itself when the
    launcher is gone: its standard input is a pipe that only the launcher holds open. Its standard
    output is a pipe too, for what the launcher is to know (``trainmesh.process_health``)."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._module = module
        self._environment = environment_of_ours(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def start(self) -> None:
        self.stop()
        self._unread = b""
        with self._log.open("ab") as log:
            # -P: the working directory is not on sys.path, so that no module in it is imported.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=self._environment,
                cwd=self._log.parent,
                start_new_session=True,
            )
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
        try:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            # The kernel takes what is beyond the lowest priority as that.
            os.setpriority(os.PRIO_PROCESS, self._process.pid, own + NICENESS)
        except ProcessLookupError:
            pass  # it has ended already

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
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def heard(self) -> list[bytes]:
        pipe = self._process.stdout if self._process is not None else None
        if pipe is None or pipe.closed:
            return []
        try:
            data = os.read(pipe.fileno(), MAX_HEARD_BYTES)
        except BlockingIOError:
            return []
        *lines, rest = (self._unread + data).split(b"\n")
        self._unread = rest[:MAX_HEARD_BYTES]
        return lines


def python_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` in which a Python process of the user's finds this trainmesh, installed or
    not."""
    result = dict(environment)
    root = str(Path(trainmesh.__file__).parent.parent)
    if root not in sys.path[1:]:  # the first entry is this process's own, and is not passed on
        result["PYTHONPATH"] = os.pathsep.join(filter(None, [root, result.get("PYTHONPATH")]))
    return result


def restart_delay_s(quick_ends: int) -> float:
    """Seconds to wait before a process is started again that has ended ``quick_ends`` times in a
    row within a minute of its start: doubles each time up to a minute, and never gives up."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(quick_ends - 1, 30))


def why_ended(code: int, log: Path, begin: int) -> str:
    """Why the owner of ``log`` has ended with ``code``; "" if nothing tells.

    A signal comes from outside, so the lines written before it are not its reason. If the folder of
    the log can't be written, that is the reason, and the log may lack it.

    Args:
        begin: The byte of the log where the process's own words begin.
    """
    if code < 0:
        return ""
    return _describe_unwritable(log.parent) or _last_words(log, begin)


def _describe_unwritable(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(PAGE_BYTES))
    except OSError as error:
        return f"nothing can be written in {folder}: {error.strerror}"
    return ""


def _last_words(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(begin, log.stat().st_size - MAX_HEARD_BYTES))
            text = file.read(MAX_HEARD_BYTES).decode(errors="replace")
    except OSError:
        return ""
    return log_reason(text)[:300]


def log_size(log: Path) -> int:
    """Bytes in ``log``; 0 if there is none."""
    try:
        return log.stat().st_size
    except OSError:
        return 0
