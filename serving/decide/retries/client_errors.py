"""Decides whose fault an answer is that says the request was wrong (3xx, 4xx).

An endpoint with a wrong key, without the model or with a broken engine refuses every request, and
at once, so that policies that look for an idle endpoint send it ever more. Whether the request or
the endpoint is at fault shows when another endpoint is asked: if that one answers well, the first
was alone with its error, which counts against it like a 5xx; if it refuses too, the client is told.

Clients' mistakes must not double the load, so asking again has a budget, which only requests that
were wrong after all use up.
"""

from __future__ import annotations

from typing import Final

from trainmesh.serving.decide.retries.budget import Budget

__all__ = ["ClientErrors", "is_client_error"]

OF_THE_CONTENT: Final = frozenset((400, 411, 413, 414, 415, 416, 417, 422, 431))
"""Statuses that nearly always mean what they say: the body or its fields are wrong. All others
(401, 403, 404, 408, 424, a redirect...) depend as much on the endpoint."""
CONTENT_SHARE: Final = 0.02
OTHER_SHARE: Final = 0.1
"""Requests that may be asked again in vain, of all requests: a refusal costs an endpoint little."""
CONTENT_PER_S: Final = 0.2
OTHER_PER_S: Final = 1.0
BURST: Final = 10.0


def is_client_error(status: int) -> bool:
    """Whether the status says that the request was wrong, and not that the endpoint is full."""
    return 300 <= status < 500 and status != 429


class ClientErrors:
    """When a request that an endpoint refused is sent to another one; of a pool."""

    __slots__ = ("_content", "_other")

    def __init__(self, now_s: float) -> None:
        self._content = Budget(CONTENT_SHARE, floor_per_s=CONTENT_PER_S, burst=BURST, now_s=now_s)
        self._other = Budget(OTHER_SHARE, floor_per_s=OTHER_PER_S, burst=BURST, now_s=now_s)

    def asked(self) -> None:
        """A client sent a request."""
        self._content.gain(1.0)
        self._other.gain(1.0)

    def may_ask_again(self, status: int, now_s: float) -> bool:
        """Takes one request from the budget of ``status``."""
        return self._budget(status).take(1.0, now_s)

    def paid(self, status: int) -> None:
        """Another endpoint answered it well, so asking again was not wasted."""
        self._budget(status).give_back(1.0)

    def _budget(self, status: int) -> Budget:
        return self._content if status in OF_THE_CONTENT else self._other
