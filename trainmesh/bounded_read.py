"""Read a file that somebody names, so that neither its size nor a pipe in its place blocks the
reader.

A named pipe has no bytes and no end until somebody writes. A plain ``open`` waits for that, for
ever if nobody does, and so does everything else in its process.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

__all__ = ["PIPE_S", "read_bounded"]

PIPE_S = 5.0
"""How long a pipe's writer is awaited if others wait for the reader: long enough for the program in
``--config <(program)`` to print, and too short for a router to seem dead."""
CHUNK_BYTES = 1 << 20
"""Read at a time: a small file takes one call, and an endless one is given up at its limit."""


def read_bounded(path: Path, max_bytes: int, *, pipe_s: float | None = PIPE_S) -> bytes:
    """The bytes of a file, or of a pipe up to its writer's end.

    Args:
        path: the file.
        max_bytes: more than that is refused.
        pipe_s: how long a pipe's bytes are awaited, in seconds; None: until they come; 0: none is
            read at all, for who goes on to open the same file again.

    Raises:
        OSError: it can't be read, is larger, or is a pipe whose writer takes too long;
            ``strerror`` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # NUL in its name
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            pipe_s = None  # it is always ready
        elif pipe_s == 0:
            raise OSError(errno.EINVAL, "not a regular file")
        data = _read(descriptor, max_bytes, None if pipe_s is None else time.monotonic() + pipe_s)
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {_binary(max_bytes)}")
    return data


def _read(descriptor: int, max_bytes: int, until_s: float | None) -> bytes:
    """Up to one byte more than ``max_bytes``."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = bytearray()
    while len(data) <= max_bytes:
        left_s = None if until_s is None else until_s - time.monotonic()
        if left_s is not None and (left_s <= 0 or not poll.poll(left_s * 1_000)):
            raise OSError(errno.ETIMEDOUT, "a pipe to which nobody has written to the end")
        if left_s is None:
            poll.poll()
        try:
            part = os.read(descriptor, min(CHUNK_BYTES, max_bytes + 1 - len(data)))
        except BlockingIOError:  # another reader was faster
            continue
        if not part:
            break
        data += part
    return bytes(data)


def _binary(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"
