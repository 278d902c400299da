"""Whether a pipe or socket has something to read: ``select`` that knows file descriptors beyond
1 023, which a process with many connections has."""

from __future__ import annotations

import select
import socket
from typing import IO, Any

__all__ = ["has_input"]


def has_input(file: IO[Any] | socket.socket, timeout_s: float) -> bool:
    """True once there is data or the other end is closed; False after ``timeout_s``."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
