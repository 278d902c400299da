"""Make, join and keep the claim on a job's name.

The processes of a launch keep the lease of its claim alive together. Each of their writes succeeds
only while the claim stands, so that two jobs of one name never mix. Their keys are bound to that
lease too: ``TTL_S`` after all processes of a job were killed, nothing of it is left.

``python -m trainmesh.store.claiming URL``, started by the launcher, claims before any worker
is started. The launcher itself never loads gRPC.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from msgspec import structs

from trainmesh.errors import (
    JobTaken,
    LeaseLost,
    StoreError,
    StoreFull,
    TrainmeshError,
    Unreachable,
    WireError,
)
from trainmesh.store.address import security_from_environment
from trainmesh.store.base import Entry, Lease, claim_prefix, job_prefix
from trainmesh.store.claim import AWAY, ENV_CLAIM, Claim, is_dead
from trainmesh.store.etcd import EtcdStore, check, connect
from trainmesh.wire import decode, encode

__all__ = ["hold", "main"]

TTL_S = 10
"""A claim outlives its last process by so much."""
PATIENCE_S = TTL_S + 3.0
"""How long to wait for the claim of a launch that may have died on another machine, where nobody
can look."""
POLL_S = 0.5
"""Between two looks at a claim that somebody else holds."""
MAX_TRIES = 5
"""Compare-and-swaps before giving up; each lost one means that somebody else wrote."""


def hold(store: EtcdStore, mine: Claim) -> Lease:
    """Make or join the claim of ``mine``'s launch; from now on ``store`` writes only while it
    stands.

    Returns:
        The lease that keeps it. Closing it doesn't revoke it: other processes share it.

    Raises:
        JobTaken: another launch has the name.
        StoreError: etcd does not answer.
    """
    key = f"{claim_prefix(mine.job)}holder"
    for _ in range(MAX_TRIES):
        entry = store.get(key)
        held = _decoded(entry) if entry is not None else None
        if entry is None:
            lease = store.shared_lease(TTL_S)
            value = encode(structs.replace(mine, lease=lease.number))
            if store.create(key, value, lease, clear=job_prefix(mine.job)):
                store.require(key, value, lease)
                return lease
            lease.close()
        elif held is None or (not held.is_of(mine) and is_dead(held)):
            store.remove(entry)
        elif held.is_of(mine):
            try:
                lease = store.shared_lease(TTL_S, held.lease)
            except LeaseLost:
                continue  # it has expired just now, and the claim with it
            store.require(key, entry.value, lease)
            return lease
        else:
            raise JobTaken(
                f"a job named {mine.job!r} is running already: it was started by {held.words}; "
                "choose another name with --job NAME, or wait until it has ended"
            )
    raise StoreError(f"the claim on the job's name {mine.job!r} changes all the time")


def _decoded(entry: Entry) -> Claim | None:
    """None for what is no claim: nothing of ours has written it."""
    try:
        return decode(entry.value, Claim, what=entry.key)
    except WireError:
        return None


def _hold_patiently(store: EtcdStore, mine: Claim) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    waiting = False
    while True:
        try:
            hold(store, mine).close()
            return
        except JobTaken as error:
            if time.monotonic() >= deadline_s:
                raise
            if not waiting:
                waiting = True
                print(
                    f"trainmesh: {error}; waiting for {PATIENCE_S:.0f} s, in case it has died",
                    file=sys.stderr,
                    flush=True,
                )
        time.sleep(POLL_S)


def main() -> int:
    """Claim the job's name. Errors are a line on standard output.

    Returns:
        0 if the name is ours, ``AWAY`` if no etcd answers or takes writes, else the error's code.
    """
    parser = argparse.ArgumentParser(prog="python -m trainmesh.store.claiming")
    parser.add_argument("url", help="http(s)://host:port of the etcd")
    parser.add_argument("--insecure", action="store_true", help="send a password in plain text")
    args = parser.parse_args()
    try:
        mine = decode(os.environ[ENV_CLAIM].encode(), Claim, what=ENV_CLAIM)
        store = connect(args.url, insecure=args.insecure, **security_from_environment())
        try:
            check(store, otherwise=", or leave --etcd out to run one here")
            _hold_patiently(store, mine)
        finally:
            store.close()
    except (Unreachable, StoreFull) as error:
        print(error)
        return AWAY
    except TrainmeshError as error:
        print(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
