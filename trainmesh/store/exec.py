"""Become etcd: ends with the parent, and takes disk space as it writes.

Run as a script, ``python -I -S etcd_exec.py PARENT_PID NICENESS ETCD ARGUMENTS...``, it imports
nothing of ours. etcd reserves 64 MB for each file of its write-ahead log and has two of them from
the start; no flag changes that. Where ``fallocate`` is not supported it makes sparse files instead,
so this is what a seccomp filter tells it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

__all__ = ["FALLOCATE", "main", "refuse_fallocate"]

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000
"""These six: linux/prctl.h and linux/seccomp.h."""
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # classic BPF (linux/bpf_common.h)
FALLOCATE = {"x86_64": (0xC000003E, 285), "aarch64": (0xC00000B7, 47)}
"""Of each machine: its number in linux/audit.h, and that of the system call."""


class Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_fallocate(libc: ctypes.CDLL) -> None:
    """Have ``fallocate`` fail with EOPNOTSUPP, from now on; nothing where that can't be."""
    known = FALLOCATE.get(os.uname().machine)
    if known is None:
        return
    machine, number = known
    steps = (
        (LOAD_WORD, 0, 0, 4),  # seccomp_data.arch
        (JUMP_IF_EQUAL, 0, 3, machine),
        (LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
        (JUMP_IF_EQUAL, 0, 1, number),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | errno.EOPNOTSUPP),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = Program(len(steps), code)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def main() -> None:
    """Never returns where the parent lives."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    refuse_fallocate(libc)
    parent, niceness, *command = sys.argv[1:]
    os.nice(int(niceness))
    if os.getppid() == int(parent):
        os.execv(command[0], command)  # noqa: S606 - not a shell's business


if __name__ == "__main__":
    main()
