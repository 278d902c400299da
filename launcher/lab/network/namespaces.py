"""The namespaces of a lab, and processes in them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from trainmesh.errors import ConfigError
from trainmesh.launcher.lab.network.ready import has_input

__all__ = ["CONTROL", "Namespaces", "Stream", "isolated_script"]

CONTROL = -1
"""The namespace that is no host's: switches and the store are in it."""
START_S = 20.0
"""For a process that only makes namespaces, on a machine that may be busy."""
STOP_S = 10.0
"""From SIGTERM on; then the process is killed."""
NUM_FILES = 5
"""Most files that the holder sends in one message."""
CAP_SYS_ADMIN = 21
"""linux/capability.h."""

Stream: TypeAlias = "int | IO[bytes] | None"


def isolated_script(name: str) -> list[str]:
    """The command of one of this folder's scripts that start quickly."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name(f"{name}.py"))]


def _may_administer() -> bool:
    """Whether this process may make namespaces without a user namespace of its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


class Namespaces:
    """A PID namespace with its processes, and a network namespace for each of ``hosts``.

    Args:
        directory: The lab's directory.
        hosts: Their hostnames.

    Raises:
        ConfigError: the kernel doesn't allow it, or a program is missing.
    """

    def __init__(self, directory: Path, hosts: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._own: list[int] = []
        self._hosts: list[list[int]] = []
        self._rootless = not _may_administer()
        with theirs:
            self._process = self._start(theirs, directory, hosts)
        try:
            self._receive(len(hosts))
        except BaseException:
            self.close()
            raise

    @property
    def holder_pid(self) -> int:
        """The process that holds them."""
        return self._process.pid

    def _start(
        self, theirs: socket.socket, directory: Path, hosts: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        user = ["--user", "--map-root-user"] if self._rootless else []
        kinds = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        holder = [*isolated_script("holder"), str(theirs.fileno()), str(directory), *hosts]
        try:
            return subprocess.Popen(
                ["unshare", *user, *kinds, *holder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except FileNotFoundError as error:
            self._socket.close()
            raise ConfigError(
                "no program unshare; a lab needs util-linux (apt-get install util-linux)"
            ) from error

    def _receive(self, num_hosts: int) -> None:
        for _ in range(num_hosts + 1):
            ready = has_input(self._socket, START_S)
            files = socket.recv_fds(self._socket, 1, NUM_FILES)[1] if ready else []
            if not files:
                raise ConfigError(self._refusal())
            for file in files:
                os.set_inheritable(file, False)
            if self._own:
                self._hosts.append(files)
            else:
                self._own = files

    def _refusal(self) -> str:
        self._process.kill()
        words = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
        why = words[-1].removeprefix("unshare: ") if words else "no answer"
        return f"the kernel doesn't allow a lab: {why}; trainmesh lab check says more"

    def files(self, host: int) -> tuple[int, ...]:
        """The namespace files of a host (its index) or of ``CONTROL``, in the order in which they
        are entered. They stay open until ``close``."""
        user, pid, mnt, net, uts = self._own
        first = (user, pid) if self._rootless else (pid,)
        return (*first, *((mnt, net, uts) if host == CONTROL else self._hosts[host]))

    def network_file(self, host: int) -> int:
        """The file of a host's (or ``CONTROL``'s) network namespace."""
        return self._own[3] if host == CONTROL else self._hosts[host][1]

    def start(
        self,
        host: int,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        more_files: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` in a host (its index) or in ``CONTROL``.

        Signals that are sent to the process returned reach the command.
        """
        files = self.files(host)
        entry = [*isolated_script("enter"), ",".join(map(str, files)), str(directory)]
        return subprocess.Popen(
            [*entry, *command],
            env=dict(environment),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[*files, *more_files],
            start_new_session=True,
        )

    def close(self) -> None:
        """End all processes in it; they are gone when this returns."""
        self._socket.close()
        for file in (*self._own, *(file for files in self._hosts for file in files)):
            os.close(file)
        self._own, self._hosts = [], []
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
