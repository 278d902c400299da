"""The rendezvous of a job's launchers on several nodes, by which they know that they are one
job."""

from __future__ import annotations

import socket
from argparse import Namespace

from trainmesh.owned import this_machine
from trainmesh.probe.interface import address_of
from trainmesh.store.claim import Meeting

__all__ = ["meeting_of"]

STATIC_PORT = 29500
"""torchrun's default for --master-port."""
C10D_PORT = 29400
"""torchrun's default ports."""
LOOPBACK = {"127.0.0.1", "127.0.1.1", "::1"}
"""Addresses that every machine has, so they identify none; Debian gives the second to a host's
name."""


def meeting_of(args: Namespace, num_nodes: int) -> Meeting | None:
    """The rendezvous of torchrun's flags ``args``; None on one node, where none is shared."""
    if num_nodes == 1:
        return None
    static = args.rdzv_backend == "static"
    endpoint = args.rdzv_endpoint
    if not endpoint:
        endpoint = f"{args.master_addr}:{args.master_port or STATIC_PORT}"
    host, port = _split(endpoint, STATIC_PORT if static else C10D_PORT)
    return Meeting(
        run_id=args.rdzv_id, endpoint=endpoint, port=port, addresses=tuple(sorted(_addresses(host)))
    )


def _split(endpoint: str, default: int) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if colon and port.isdecimal():
        return host.strip("[]"), int(port)
    return endpoint.strip("[]"), default


def _addresses(host: str) -> set[str]:
    """The addresses of ``host``; if it is this machine, all of its own."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:
        return set()  # torchrun says so
    own = _own_addresses()
    if found & own:
        machine = this_machine()
        return (found | own | {f"{machine.host}/{machine.boot_id}"}) - LOOPBACK
    return found


def _own_addresses() -> set[str]:
    named = {address_of(name) for _, name in socket.if_nameindex()}
    return {address for address in named if address is not None} | LOOPBACK
