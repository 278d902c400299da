"""Directories that belong to one process, and how others find out that it has died.

The owner holds a lock (``flock``) on the file ``lock`` in its directory while it lives; the kernel
releases it when the process ends, however it ends. A process id says nothing if two PID namespaces
or two hosts share the parent directory. A lock counts only between processes of one kernel (the
same boot id), because a network file system may not show it to other hosts.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from msgspec import Struct

from trainmesh.console import say
from trainmesh.errors import ConfigError, WireError
from trainmesh.places import Place, places
from trainmesh.wire import decode, encode

__all__ = ["Machine", "OwnedDirectory", "this_machine"]


class Machine(Struct, frozen=True, kw_only=True):
    """The kernel on which a process runs, and since when (seconds since 1970)."""

    boot_id: str
    host: str
    machine_id: str
    """Of the installation (machine-id(5)); empty where there is none, as in many containers."""
    booted_unix_s: float


class Holder(Struct, frozen=True, kw_only=True):
    """Who holds a directory's lock; ``locked`` is False where the file system has no locks."""

    pid: int
    machine: Machine
    locked: bool
    instead_of: str = ""
    """The root in which the directory was to be made, where that could not be written."""


@functools.cache
def this_machine() -> Machine:
    """The machine on which this process runs."""
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return Machine(
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
        host=socket.gethostname(),
        machine_id=_first_line("/etc/machine-id"),
        booted_unix_s=time.time() - up_s,
    )


class OwnedDirectory:
    """A private directory in the runs root. One process makes it and owns it; others look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._instead_of = ""
        self._locks: list[int] = []

    @classmethod
    def make(cls, prefix: str) -> Self:
        """A new directory, owned by this process, whose name begins with ``prefix``. Where the
        folder that the environment names can't be written, another one stands in for it, which is
        said on stderr.

        Raises:
            ConfigError: no root can be made, or be written, or all belong to somebody else.
        """
        named, *others = places()
        try:
            return cls._make_in(named, prefix)
        except _Refused as error:
            refused = error
        for place in others:
            try:
                made = cls._make_in(place, prefix, instead_of=str(named.root))
            except _Refused:
                continue
            say(f"warning: {refused.why}; {place.root} is used instead")
            return made
        raise ConfigError(f"{refused.why}; set XDG_RUNTIME_DIR to a writable directory of yours")

    @classmethod
    def _make_in(cls, place: Place, prefix: str, *, instead_of: str = "") -> Self:
        root = place.root
        try:
            made = cls(_make_under(root, prefix))
            made._instead_of = instead_of
            try:
                made.take()
            except OSError:
                made.remove()
                raise
        except OSError as error:
            raise _Refused(f"can't make a run directory in {root}: {error.strerror}") from error
        return made

    @classmethod
    def every(cls, prefix: str = "") -> list[Self]:
        """All directories whose name begins with ``prefix`` in the runs root, or in a root that
        was used instead of it, whoever's."""
        named, *others = places()
        found = _in_root(named.root, prefix)
        for place in others:
            for path in _in_root(place.root, prefix):
                holder = cls(path)._holder()
                if holder is not None and holder.instead_of == str(named.root):
                    found.append(path)
        return [cls(path) for path in found]

    def take(self) -> None:
        """Become the owner, until ``remove`` or the end of this process.

        Raises:
            OSError: the lock file can't be written.
        """
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._locks.append(lock)
        locked = _try_lock(lock) is True
        holder = Holder(
            pid=os.getpid(),
            machine=this_machine(),
            locked=locked,
            instead_of=self._instead_of,
        )
        os.pwrite(lock, encode(holder), 0)
        # systemd-tmpfiles leaves a directory alone that is locked itself (tmpfiles.d(5)).
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._locks.append(folder)
        _try_lock(folder, fcntl.LOCK_SH)

    def restore(self) -> bool:
        """Make it anew if somebody has removed it, as some do with what is old in /tmp.

        Returns:
            Whether the directory was gone.

        Raises:
            OSError: it can't be made.
        """
        gone = not self.path.is_dir()
        if gone or not (self.path / "lock").exists():
            self.release()
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.take()
        return gone

    def release(self) -> None:
        """Give up the ownership; the directory stays."""
        while self._locks:
            os.close(self._locks.pop())

    def remove(self) -> None:
        """Remove it, and the root if nothing else is left in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()
        try:
            self.path.parent.rmdir()
        except OSError:
            pass  # other runs are in it

    @property
    def is_here(self) -> bool:
        """Whether its owner is, or was, a process of this machine since it was booted."""
        holder = self._holder()
        return holder is not None and holder.machine.boot_id == this_machine().boot_id

    @property
    def is_dead(self) -> bool:
        """Whether its owner is known to have ended; False where that can't be proven."""
        with self.proof_of_death() as proven:
            return proven

    @contextmanager
    def proof_of_death(self) -> Iterator[bool]:
        """Whether the owner has ended; its lock is ours until the context is left."""
        holder = self._holder()
        if holder is None or not holder.locked or not _reaches(holder.machine, this_machine()):
            yield False
            return
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # just removed, or not ours
            yield False
            return
        try:
            yield _try_lock(lock) is True
        finally:
            os.close(lock)

    def _holder(self) -> Holder | None:
        path = self.path / "lock"
        try:
            return decode(path.read_bytes(), Holder, what=str(path))
        except (OSError, WireError):
            return None


def _reaches(owner: Machine, here: Machine) -> bool:
    """Whether taking the lock from ``here`` proves that its ``owner`` has ended: the owner took it
    on the same kernel, or before this same machine was rebooted."""
    if owner.boot_id == here.boot_id:
        return True
    same = (owner.host, owner.machine_id) == (here.host, here.machine_id)
    # Two boots share no monotonic clock. Where the wall clock was wrong at one of them, the
    # directory stays until a later boot.
    return bool(here.machine_id) and same and owner.booted_unix_s < here.booted_unix_s


def _try_lock(file: int, kind: int = fcntl.LOCK_EX) -> bool | None:
    """True if the lock is ours now, False if another holds it, None where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


class _Refused(Exception):
    """A root can't hold a run directory."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _in_root(root: Path, prefix: str) -> list[Path]:
    try:
        return sorted(root.glob(f"{prefix}*"))
    except OSError:
        return []


def _make_under(root: Path, prefix: str) -> Path:
    """Make a private directory; a launch that is ending may remove the root once in between. The
    folder that holds the root is not made, because it is not ours."""
    for last_try in (False, True):
        root.mkdir(mode=0o700, exist_ok=True)
        try:
            if root.stat().st_uid != os.getuid():
                raise _Refused(f"can't make a run directory in {root}: it belongs to another user")
            return Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        except FileNotFoundError:
            if last_try:
                raise
    raise AssertionError("unreachable")
