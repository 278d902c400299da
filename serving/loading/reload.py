"""Watches serve.yaml, so that a new one is taken without a restart.

The file is looked at by stat, and read when it has changed and then stayed the same for one more
look, because an editor may be in the middle of writing it. Files of keys are read again every
half minute. A file that is wrong changes nothing and is reported once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from trainmesh.errors import ConfigError
from trainmesh.serving.config.changes import RESTART, changes, needs_restart
from trainmesh.serving.config.types import Config
from trainmesh.serving.loading.load import load

__all__ = ["REREAD_S", "Reload", "Watcher"]

REREAD_S = 30.0


class Reload(NamedTuple):
    """The result of a look at the file.

    Attributes:
        config: the one to use from now on; None: the previous one stays. lines: what changed, or
        why the file was refused; to be logged.
    """

    config: Config | None
    lines: tuple[str, ...]


class Watcher:
    """Compares a file with the configuration in use.

    Attributes:
        config: the one in use. Parts that need a restart stay as they were at the start.
    """

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        policies: Collection[str] | None = None,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load ``path``.

        Raises:
            ConfigError: as ``load``.
        """
        self._path = path
        self._environ = environ
        self._policies = policies
        self._monotonic_s = monotonic_s
        self._stamp = self._seen = _stamp(path)
        self._read_at_s = monotonic_s()
        self._problem = ""
        self._written = self.config = load(path, environ, policies)

    def look(self) -> Reload | None:
        """Look at the file, about once a second; None if nothing is new."""
        stamp = _stamp(self._path)
        stable, self._seen = stamp == self._seen, stamp
        if not stable:
            return None
        now_s = self._monotonic_s()
        if stamp == self._stamp and now_s - self._read_at_s < REREAD_S:
            return None
        self._stamp = stamp
        self._read_at_s = now_s
        try:
            written = load(self._path, self._environ, self._policies)
        except ConfigError as error:
            return self._refused(str(error))
        return self._taken(written)

    def _refused(self, problem: str) -> Reload | None:
        if problem == self._problem:
            return None
        self._problem = problem
        return Reload(None, (f"{problem}; the configuration stays as it was",))

    def _taken(self, written: Config) -> Reload | None:
        lines = changes(self._written, written)
        if self._problem:
            self._problem = ""
            lines = lines or (f"{self._path} is right again, and as it was before",)
        if not lines:
            return None
        late = needs_restart(self.config, written)
        if late:
            lines = (*lines, f"{', '.join(late)}: takes effect with the next start")
        self._written = written
        self.config = replace(written, **{name: getattr(self.config, name) for name in RESTART})
        return Reload(self.config, lines)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
