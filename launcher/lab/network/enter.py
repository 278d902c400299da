"""Runs a command in the namespaces of open files: ``enter.py FDS DIRECTORY COMMAND...``.

FDS is the numbers of the namespace files with commas between, the user namespace first. Signals
go on to the command; its exit code, or the signal that ended it, becomes ours. If we are killed,
the kernel kills it.

Runs by path, isolated and without ``site``: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import NoReturn

__all__ = ["main"]

PR_SET_PDEATHSIG = 1
"""linux/prctl.h."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
NOT_FOUND = 127
"""A shell's exit code for a command that isn't there."""


def main() -> None:
    """Entry point."""
    files, directory, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    for file in map(int, files.split(",")):
        if libc.setns(file, 0) != 0:
            raise OSError(ctypes.get_errno(), "can't enter the lab's namespace")
        os.close(file)
    os.chdir(directory)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()  # the first process that is in the PID namespace
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _become(command)
    for number in FORWARDED:
        signal.signal(number, lambda received, _: _pass_on(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    _end_as(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(command: list[str]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        print(f"trainmesh: error: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND)


def _pass_on(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except ProcessLookupError:
        pass  # it has just ended


def _end_as(code: int) -> NoReturn:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has dumped its own
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
