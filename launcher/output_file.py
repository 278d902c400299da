"""Write a file that the user has named: a picture, a topology file, a report.

The kind of file decides how: a link is followed; a regular file is replaced in one step and keeps
its permissions; anything else (a device, a FIFO, the standard output) is written to, never
replaced.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import tempfile
import time
from pathlib import Path

from trainmesh.console import clean
from trainmesh.errors import ConfigError

__all__ = ["check_output", "write_output"]

READER_S = 5.0
"""How long a FIFO may be without a reader; the one of ``mkfifo f; cat f &`` is there at once."""
POLL_S = 0.02
"""Between two tries to open a pipe that nobody reads yet."""
STALL_S = 60.0
"""How long a reader may take nothing: a person may page, and a launch has an end."""
IN_PLACE = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV)
"""A file in a folder that can't be written to, or that something is mounted on, can't be
replaced, and may still be written."""


def check_output(path: Path, *, what: str) -> None:
    """Check, before long work begins, whether ``path`` could be written now.

    Raises:
        ConfigError: it could not.
    """
    target = Path(os.path.realpath(path))
    number = 0
    if target.is_dir():
        number = errno.EISDIR
    elif target.exists():
        number = 0 if os.access(target, os.W_OK) else errno.EACCES
    elif not target.parent.is_dir():
        number = errno.ENOENT
    elif not os.access(target.parent, os.W_OK | os.X_OK):
        number = errno.EACCES
    if number:
        raise ConfigError(f"{what} {clean(str(path))}: {os.strerror(number)}")


def write_output(path: Path, data: bytes, *, what: str) -> None:
    """Write ``data`` to ``path``.

    Args:
        what: How the message of an error begins: the flag that named the file.

    Raises:
        ConfigError: it can't be written; what was there is as it was, where it is a regular file
            that can be replaced.
    """
    try:
        _write(path, data)
    except OSError as error:
        raise ConfigError(f"{what} {clean(str(path))}: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    target = Path(os.path.realpath(path))
    try:
        there = target.stat()
    except FileNotFoundError:
        _replace(target, data, None)
        return
    ours = _our_output(there)
    if ours is not None:
        # Its offset is shared with what is printed: neither overwrites the other.
        sys.stdout.flush()
        sys.stderr.flush()
        _write_all(os.dup(ours), data)
        return
    if not stat.S_ISREG(there.st_mode):
        _write_through(path, data)
        return
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # Another name of the same file, or another owner, would be lost with it.
    if there.st_nlink == 1 and there.st_uid == os.geteuid():
        try:
            _replace(target, data, stat.S_IMODE(there.st_mode))
            return
        except OSError as error:
            if error.errno not in IN_PLACE:
                raise
    _write_all(os.open(target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC), data)


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    """A new file of ``mode`` (None: what the umask leaves) in ``target``'s place."""
    descriptor, name = tempfile.mkstemp(prefix=".trainmesh-", dir=target.parent)
    try:
        os.fchmod(descriptor, 0o666 & ~_umask() if mode is None else mode)
        _write_all(descriptor, data, sync=True)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _write_all(descriptor: int, data: bytes, *, sync: bool = False) -> None:
    """Write and close; a full disk or quota shows at ``fsync`` at the latest."""
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(descriptor)


def _our_output(there: os.stat_result) -> int | None:
    """The descriptor by which our own output goes there (/dev/stdout, or by its name), if any."""
    for descriptor in (1, 2):
        try:
            ours = os.fstat(descriptor)
        except OSError:
            continue
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            return descriptor
    return None


def _write_through(path: Path, data: bytes) -> None:
    descriptor = _open_with_reader(path)
    try:
        rest = memoryview(data)
        while rest:
            if not select.select([], [descriptor], [], STALL_S)[1]:
                raise OSError(errno.EAGAIN, f"nothing was read from it for {STALL_S:g} s")
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def _open_with_reader(path: Path) -> int:
    """Open what is no regular file, a FIFO once there is a reader.

    Raises:
        OSError: there is none in ``READER_S``.
    """
    deadline_s = time.monotonic() + READER_S
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or not path.is_fifo():
                raise
            if time.monotonic() >= deadline_s:
                raise OSError(errno.ENXIO, "nothing reads this FIFO") from error
            time.sleep(POLL_S)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
