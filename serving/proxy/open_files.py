"""How many clients a worker can serve with the files that it may have open."""

from __future__ import annotations

import resource
from typing import Final

__all__ = ["connections_that_fit"]

OWN_FILES: Final = 48
"""Of a worker: standard streams, listener, board, ledger, logs, event loop, kept connections."""


def connections_that_fit() -> int:
    """Each client takes two sockets, its own and one to an endpoint. More would take the sockets
    to endpoints from those who are there, and make the endpoints look dead."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 2**20
    return max(1, (soft - OWN_FILES) // 2)
