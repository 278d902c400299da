"""First process of a lab's own PID namespace: makes the hosts' namespaces and hands them out.

``holder.py FD DIRECTORY HOST...`` sends over the socket FD, one message a set, the open files of
its own namespaces (user, pid, mnt, net, uts) and then of each host's (mnt, net, uts). It then
waits for the end of the socket, which comes however its owner ends. When it ends the kernel kills
all processes of the namespace, and removes devices and bridges with the last open file.

Each host has a boot id of its own, for programs that tell machines apart by it (NCCL, trainmesh),
and knows the names in the file ``hosts`` in DIRECTORY.

Runs by path, isolated and without ``site``: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

__all__ = ["main"]

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
"""These four: linux/sched.h and linux/mount.h."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAMES = "/etc/hosts"
OWN = ("user", "pid", "mnt", "net", "uts")
A_HOSTS = ("mnt", "net", "uts")
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans come to us: the kernel reaps them
    number, directory, *hosts = sys.argv[1:]
    owner = socket.socket(fileno=int(number))
    _send(owner, OWN)
    for index, host in enumerate(hosts):
        _check(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS), "make namespaces")
        socket.sethostname(host)
        boot_id = Path(directory, f"boot_id.{index}")
        boot_id.write_text(f"{uuid.uuid4()}\n")
        _show(boot_id, BOOT_ID)
        _show(Path(directory, "hosts"), NAMES)
        _send(owner, A_HOSTS)
    owner.recv(1)


def _show(file: Path, at: str) -> None:
    """Make ``file`` what is read at another place."""
    _check(LIBC.mount(bytes(file), at.encode(), None, MS_BIND, None), f"mount on {at}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"can't {what}")


def _send(owner: socket.socket, kinds: tuple[str, ...]) -> None:
    files = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in kinds]
    socket.send_fds(owner, [b"n"], files)
    for file in files:
        os.close(file)


if __name__ == "__main__":
    main()
