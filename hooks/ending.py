"""Our threads that are inside C++ when the interpreter ends.

A thread that returns to Python while the interpreter shuts down is ended by ``pthread_exit``
(before Python 3.14, which lets it hang: CPython issue 87135). That unwinds through destructors that
may not throw, so C++ aborts the process, and its own exit code is lost.
"""

from __future__ import annotations

import ctypes
import sys
import threading

__all__ = ["PREFIX", "outlive_threads"]

PREFIX = "trainmesh "
"""Of our threads' names."""


def outlive_threads() -> None:
    """The process ends now: a thread of ours that can't be joined hangs when it comes back, as from
    Python 3.14 on. Not done where there is none, as it holds for all threads of the process."""
    if sys.version_info >= (3, 14):
        return
    if not any(thread.name.startswith(PREFIX) for thread in threading.enumerate()):
        return
    try:
        set_terminate = ctypes.CDLL("libstdc++.so.6")["_ZSt13set_terminatePFvvE"]
        set_terminate(ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p))
    except (OSError, AttributeError):
        pass  # another C++ library: the process may be aborted, as it would have been
