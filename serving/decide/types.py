"""The inputs and outputs of a routing decision. Nothing here does I/O or has a clock.

A ``Pool`` (``trainmesh.serving.decide.pool``) holds the ``Endpoint``s of one model. The proxy
asks it where to send a request and tells it how that went; it never reads a socket itself, so a
simulator can drive the same objects. ``now_s`` is always ``time.monotonic()`` of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Protocol

from trainmesh.serving.decide.rows import NEVER_S, Context, EndpointSignal, Row

__all__ = [
    "HASH_BITS",
    "NEVER_S",
    "Candidate",
    "Context",
    "EndpointSignal",
    "RequestFacts",
    "AttemptKind",
    "AttemptOutcome",
    "Row",
    "Scorer",
    "stable_hash",
]


HASH_BITS = 63


def stable_hash(data: bytes) -> int:
    """A hash of 63 bits that is the same in every process; never 0."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") >> 1 | 1


class AttemptOutcome(StrEnum):
    """How an attempt ended. Only the last six count against the endpoint."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    """A 3xx, or a 4xx other than 429: the request was wrong."""
    BACKPRESSURE = "backpressure"
    """429, 503 or 529: the endpoint is full, not broken."""
    CANCELLED = "cancelled"
    """The client went away, or another attempt was faster."""
    SILENT = "silent"
    """A stream without a byte for too long: the model may have been thinking."""
    CLOSED = "closed"
    """A kept connection was at its end when the request was sent; nothing came back."""
    CONNECT = "connect"
    RESET = "reset"
    """The connection ended before the first byte."""
    STATUS = "status"
    """A 5xx other than 503 and 529."""
    TIMEOUT = "timeout"
    STREAM = "stream"
    """It ended in the middle of the answer, or took too long as a whole."""
    LONE_ERROR = "lone_error"
    """A 3xx or 4xx where another endpoint answered the same request well."""


class AttemptKind(StrEnum):
    """Why an attempt is made."""

    FIRST = "first"
    RETRY = "retry"
    HEDGE = "hedge"
    TRIAL = "trial"


class RequestFacts:
    """The facts of a request that are known before it is sent anywhere. Tokens are estimates: by
    the kind of its parts for the prompt (``proxy.prompt``), corrected by what answers count, and
    ``max_tokens`` (or what answers had so far) for the output."""

    __slots__ = (
        "blocks",
        "client_id",
        "model",
        "nbytes",
        "output_tokens",
        "priority",
        "prompt_tokens",
        "request_id",
        "session",
        "session_key",
        "stream",
        "tenant",
    )

    def __init__(
        self,
        *,
        request_id: str,
        model: str,
        tenant: str = "",
        priority: int = 5,
        stream: bool = False,
        nbytes: int = 0,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        session: bytes = b"",
        blocks: Sequence[int] = (),
        client_id: str = "",
    ) -> None:
        self.request_id = request_id
        self.client_id = client_id
        """The client's own name for it, which others may have too."""
        self.model = model
        self.tenant = tenant
        self.priority = priority
        self.stream = stream
        self.nbytes = nbytes
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.session = session
        self.session_key = stable_hash(session) if session else 0
        """A hash of the session for scorers and the ledger; 0 without one."""
        self.blocks = blocks
        """Chained hashes of the prompt's blocks of 128 tokens, for the prefix index."""


class Candidate(Protocol):
    """A ``Row``, or the live object with the same fields."""

    @property
    def index(self) -> int: ...
    @property
    def key(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def rtt_s(self) -> float: ...
    @property
    def bandwidth_bytes_per_s(self) -> float: ...
    @property
    def derate(self) -> float: ...
    @property
    def inflight(self) -> int: ...
    @property
    def inflight_tokens(self) -> int: ...
    @property
    def waiting_tokens(self) -> int: ...
    @property
    def base_s(self) -> float: ...
    @property
    def s_per_token(self) -> float: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def kv_use(self) -> float: ...
    @property
    def report_age_s(self) -> float: ...


class Scorer(Protocol):
    """A policy, found under the entry point ``trainmesh.scorers`` (a callable without arguments
    that returns one). It must be a pure function of its arguments, so that a ledger can be
    replayed; a replay has no ``session``, ``blocks`` and ``request_id`` in its facts."""

    name: str

    def score(
        self, facts: RequestFacts, candidates: Sequence[Candidate], context: Context, draw: float
    ) -> Sequence[float]:
        """One number for each candidate; the least is taken, the first of equal ones.

        Args:
            facts: the request.
            candidates: never empty; in turn, a different one first each time.
            context: numbers that are the same for all candidates.
            draw: a random number in [0, 1), the only chance a scorer may use.
        """
        ...
