"""Whose turn it is: the requests of a connection are answered in the order in which they came.

Should an answer ever come up for another request than the one whose turn it is, which must be
impossible, nobody gets it.
"""

from __future__ import annotations

import logging

from trainmesh.serving.observe.log import LOGGER, log_event
from trainmesh.serving.proxy.exchange.exchange import Exchange
from trainmesh.serving.proxy.reading.call import Call

__all__ = ["AnswerTurn"]


class AnswerTurn:
    """Of one connection."""

    __slots__ = ("_begun", "call", "exchange")

    def __init__(self) -> None:
        self._begun = 0
        """Requests whose turn has come."""
        self.call: Call | None = None
        """The request whose turn it is."""
        self.exchange: Exchange | None = None
        """What answers it, where the router doesn't do so at once."""

    def begin(self, call: Call) -> bool:
        """It is the turn of ``call``; False if another one should have come before."""
        self._begun += 1
        self.call = call
        if call.place == self._begun:
            return True
        _log_lost(f"request {call.place} came up as number {self._begun}")
        return False

    def is_of(self, exchange: Exchange) -> bool:
        """Whether ``exchange`` answers the request whose turn it is."""
        if exchange is self.exchange:
            return True
        _log_lost("an answer came for a request whose turn it is not")
        return False


def _log_lost(what: str) -> None:
    log_event(LOGGER, "order_lost", level=logging.ERROR, reason=what)
