"""A client that sends nothing more: it has shut down its sending side, or has gone away.
Only what we write will tell.

One that speaks HTTP/1.0 knows no interim answers, so it is taken as gone: it is mostly a proxy
whose own client has left.
"""

from __future__ import annotations

import asyncio
from typing import Final

from trainmesh.serving.proxy.exchange.exchange import Exchange

__all__ = ["HalfClosedClient"]

HALF_CLOSED_S: Final = 5.0
"""Between two looks whether a client that sends nothing more still reads: some count interim
answers. The first two follow one another at once: what tells is the second write, after a reset."""
RESET_S: Final = 0.25
"""By then a reset has come back for what was written to a closed connection."""


class HalfClosedClient:
    """Looks whether such a client still reads, so that an endpoint needn't work for nobody: an
    interim answer (RFC 9110, 15.2) costs a client nothing, nor does a comment in a stream of
    events, and a connection that is closed is reset by it."""

    __slots__ = ("_looked_once", "_looked_s")

    def __init__(self) -> None:
        self._looked_once = False
        self._looked_s = float("-inf")

    def check(
        self, exchange: Exchange | None, transport: asyncio.Transport, paused: bool, now_s: float
    ) -> None:
        """Called now and then.

        Args:
            exchange: what answers the client.
            transport: of its connection.
            paused: it doesn't take our answers, so nothing more may be written.
            now_s: monotonic seconds.
        """
        wait_s = RESET_S if self._looked_once else HALF_CLOSED_S
        if exchange is None or paused or now_s - self._looked_s < wait_s:
            return
        self._looked_once = self._looked_s == float("-inf")
        self._looked_s = now_s
        if exchange.winner is None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            exchange.winner.comment(now_s)
