"""Clean up what torchrun leaves behind: always, or when it is interrupted while it ends its
workers."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from trainmesh.errors import TrainmeshError
from trainmesh.launcher.run import signals
from trainmesh.rundir import remove_empty_logs

__all__ = ["kill_workers", "log_directory"]


def kill_workers(marker: str) -> None:
    """Kill this process's children that have ``marker`` (``NAME=value``) in their environment,
    with all processes of their groups. A second Ctrl-C makes torchrun forget them."""
    for pid in _children():
        if marker.encode() not in _environment(pid):
            continue
        try:
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@contextmanager
def log_directory(chosen: str | None, made: Callable[[str], object]) -> Iterator[str]:
    """Torchrun's log directory: the chosen one, else a temporary one as torchrun makes it, which
    is removed at the end if no log or error file in it holds anything. ``made`` is told its path,
    so that a later launch can remove it if this one is killed.

    Raises:
        TrainmeshError: there is no temporary directory; exit code 1, as torchrun's.
    """
    if chosen is not None:
        yield chosen
        return
    with ExitStack() as stack:
        with signals.deferring():
            try:
                path = tempfile.mkdtemp(prefix="torchelastic_")
            except OSError as error:
                raise TrainmeshError(
                    f"torchrun needs a temporary directory: {error.strerror}; set TMPDIR, or pass "
                    "--log-dir"
                ) from error
            stack.callback(remove_empty_logs, Path(path))
            made(path)
        yield path


def _children() -> list[int]:
    pids: list[int] = []
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            pids += map(int, task.read_text().split())
        except OSError:
            pass  # the thread has ended, or the kernel does not list children
    return pids


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
