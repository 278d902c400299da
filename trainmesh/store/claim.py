"""A job's name belongs to one launch: which one holds it, and when it may be taken over.

All launchers of one torchrun rendezvous are one launch. ``trainmesh.store.claiming`` keeps
claims in the store.
"""

from __future__ import annotations

import getpass
import os
import secrets
import time
from collections.abc import Mapping

from msgspec import Struct, structs

from trainmesh.owned import this_machine
from trainmesh.rundir import process_start_ticks
from trainmesh.wire import decode

__all__ = ["AWAY", "ENV_CLAIM", "Claim", "Meeting", "claim_from", "is_dead", "new_claim"]

ENV_CLAIM = "TRAINMESH_CLAIM"
AWAY = 75
"""Exit code of ``trainmesh.store.claiming``: no etcd answers now (EX_TEMPFAIL of
sysexits.h)."""


class Meeting(Struct, frozen=True, kw_only=True):
    """Where torchrun's launchers of several nodes meet."""

    run_id: str
    endpoint: str
    port: int
    addresses: tuple[str, ...]
    """The addresses of the endpoint's host as seen from here; if it is this machine, all of its
    own."""

    def is_same(self, other: Meeting) -> bool:
        """Whether both are one rendezvous, even if its host has several names."""
        if (self.run_id, self.port) != (other.run_id, other.port):
            return False
        return self.endpoint == other.endpoint or bool({*self.addresses} & {*other.addresses})


class Claim(Struct, frozen=True, kw_only=True):
    """The launch that holds a job's name. ``meeting`` is None for a launch on one node."""

    job: str
    nonce: str
    host: str
    user: str
    pid: int
    start_ticks: int
    pid_namespace: str
    boot_id: str
    since_unix_s: float
    meeting: Meeting | None = None
    lease: int = 0

    def is_of(self, other: Claim) -> bool:
        """Whether both are of one launch."""
        if self.meeting is not None and other.meeting is not None:
            return self.meeting.is_same(other.meeting)
        return self.nonce == other.nonce

    @property
    def words(self) -> str:
        """Who has the name, for people."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_unix_s))
        return f"{self.user} on {self.host} (launcher {self.pid}) since {since}"


def new_claim(job: str, meeting: Meeting | None) -> Claim:
    """The claim that this process, a launcher, makes on the name ``job``."""
    machine = this_machine()
    return Claim(
        job=job,
        nonce=secrets.token_hex(8),
        host=machine.host,
        user=_user(),
        pid=os.getpid(),
        start_ticks=process_start_ticks(os.getpid()) or 0,
        pid_namespace=_pid_namespace(),
        boot_id=machine.boot_id,
        since_unix_s=time.time(),
        meeting=meeting,
    )


def claim_from(environ: Mapping[str, str], job: str) -> Claim:
    """The launcher's claim; without a launcher, one that all such processes of ``job`` share.

    Raises:
        WireError: the variable is not a claim.
    """
    text = environ.get(ENV_CLAIM)
    if text:
        return decode(text.encode(), Claim, what=ENV_CLAIM)
    return structs.replace(new_claim(job, None), nonce="without a launcher")


def is_dead(claim: Claim) -> bool:
    """Whether the claim's launcher has certainly ended, which shows only on this machine, where its
    processes can be seen. If the launch has several nodes, the others may live."""
    here = (this_machine().boot_id, _pid_namespace())
    if claim.meeting is not None or (claim.boot_id, claim.pid_namespace) != here:
        return False
    return process_start_ticks(claim.pid) != claim.start_ticks


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return f"user {os.getuid()}"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
