"""What the control process tells its workers beside the snapshot: the configuration in force, and
to wait for nobody any more."""

from __future__ import annotations

import signal
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import WireError
from trainmesh.rundir import write_atomically
from trainmesh.serving.config.types import Config
from trainmesh.wire import decode, encode

__all__ = ["CUT_SHORT", "MAX_BYTES", "FileWatch", "WorkerConfig", "read_orders", "write_orders"]

CUT_SHORT = signal.SIGUSR1
"""A worker that gets it ends what is on its way. No signal that others send to all processes of a
service, such as SIGTERM: that must not cut what the first one lets finish."""
MAX_BYTES = 64 << 20


class WorkerConfig(Struct, frozen=True, kw_only=True):
    """``config.json``. ``generation`` grows with each reload and names the counters file; ``host``
    and ``port`` are where workers listen (a port is chosen once, also where the config has 0)."""

    generation: int
    config: Config
    host: str
    port: int
    jwks: str = ""
    """The token issuer's keys (RFC 7517), fetched by the control process."""


def write_orders(path: Path, worker_config: WorkerConfig) -> None:
    """Replace the file."""
    write_atomically(path, encode(worker_config))


def read_orders(path: Path) -> WorkerConfig:
    """Read the file.

    Raises:
        WireError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WireError(f"{path}: {error.strerror}") from error
    return decode(data, WorkerConfig, what=str(path), max_bytes=MAX_BYTES)


class FileWatch:
    """Tells whether a file that is replaced atomically is a new one since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    def changed(self) -> bool:
        """True once for each new file."""
        try:
            stat = self.path.stat()
        except OSError:
            return False
        now = (stat.st_ino, stat.st_mtime_ns)
        changed, self._seen = now != self._seen, now
        return changed
