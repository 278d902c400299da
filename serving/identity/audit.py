"""The audit log: who did or tried what, one JSON object a line, appended only.

Admin actions are on the disk (fsync) when the call returns; refusals are bounded in number and
go with the system's next write. Several processes may append to one file. It is rotated to
``FILE.1`` ... ``FILE.9`` by size. Keys and tokens are never in it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from trainmesh.errors import ConfigError

__all__ = ["AuditLog", "AuditRecord"]

MAX_FILE_BYTES = 16 << 20
KEPT = 9
MAX_TEXT = 512
REFUSALS_PER_S = 10.0
REFUSAL_BURST = 100.0


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line."""

    unix_s: float
    kind: str
    """``admin`` or ``refused``"""
    who: str
    action: str
    target: str = ""
    where: str = ""
    """The address that it came from."""
    result: str = ""
    left_out: int = 0
    """Refusals before this one that were too many to write."""


class AuditLog:
    """Appends records to a file."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_FILE_BYTES,
        unix_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Raises:
            ConfigError: the file can't be written.
        """
        self._path = path
        self._max_bytes = max_bytes
        self._unix_s = unix_s
        self._monotonic_s = monotonic_s
        self._tokens = REFUSAL_BURST
        self._filled_s = monotonic_s()
        self._left_out = 0
        try:
            self._file = self._open()
        except (OSError, ValueError) as error:
            raise ConfigError(f"audit: {path}: {error}") from error

    def admin(self, who: str, action: str, target: str, where: str, result: str) -> None:
        """Write that an admin did something, and wait until it is on the disk.

        Raises:
            OSError: it could not be written; the action should not be taken then.
        """
        self._write("admin", who, action, target, where, result)
        os.fsync(self._file)

    def refused(self, who: str, action: str, target: str, where: str, result: str) -> None:
        """Write that somebody was refused, unless there are too many of that.

        Raises:
            OSError: it could not be written.
        """
        now_s = self._monotonic_s()
        gained = (now_s - self._filled_s) * REFUSALS_PER_S
        self._tokens = min(REFUSAL_BURST, self._tokens + gained)
        self._filled_s = now_s
        if self._tokens < 1:
            self._left_out += 1
            return
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        self._write("refused", who, action, target, where, result, left_out)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(
        self,
        kind: str,
        who: str,
        action: str,
        target: str,
        where: str,
        result: str,
        left_out: int = 0,
    ) -> None:
        record = AuditRecord(
            unix_s=round(self._unix_s(), 3),
            kind=kind,
            who=who[:MAX_TEXT],
            action=action[:MAX_TEXT],
            target=target[:MAX_TEXT],
            where=where[:MAX_TEXT],
            result=result[:MAX_TEXT],
            left_out=left_out,
        )
        line = msgspec.json.encode(record) + b"\n"
        self._lock_current()
        try:
            if os.fstat(self._file).st_size + len(line) > self._max_bytes:
                self._rotate()
            os.write(self._file, line)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock_current(self) -> None:
        """Hold the lock of the file that has the name now: another process may have rotated."""
        while True:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self._is_current():
                return
            self._reopen()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(KEPT - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._reopen()
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _reopen(self) -> None:
        new = self._open()
        os.close(self._file)
        self._file = new

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._path, flags, 0o600)
