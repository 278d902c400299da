"""What a client's connection is doing, and how long that may take."""

from __future__ import annotations

from enum import Enum
from typing import Final

from trainmesh.serving.config.types import LimitsConfig

__all__ = ["ClientPhase", "PhaseTimer"]

LINGER_S: Final = 2.0
"""How long we read what a refused client still sends, so that our answer isn't lost to a reset."""
LEAST_BODY_BYTES_PER_S: Final = 50_000
"""A large body may take longer than ``limits.body_timeout_s``, as long as it comes."""


class ClientPhase(Enum):
    """HEADER and BODY only while no other request is being answered."""

    IDLE = "idle"
    HEADER = "header"
    BODY = "body"
    BUSY = "busy"
    LINGER = "linger"


class PhaseTimer:
    """The phase of one connection, and since when. ``now_s``: monotonic seconds."""

    __slots__ = ("phase", "since_s")

    def __init__(self, now_s: float) -> None:
        self.phase = ClientPhase.IDLE
        self.since_s = now_s

    def enter(self, phase: ClientPhase, now_s: float) -> None:
        self.phase = phase
        self.since_s = now_s

    def overdue(self, limits: LimitsConfig, body_bytes: int, now_s: float) -> bool:
        """Whether it takes too long; ``body_bytes`` have come of the body that is awaited. An
        answer has limits of its own."""
        waited_s = now_s - self.since_s
        match self.phase:
            case ClientPhase.IDLE:
                return waited_s > limits.idle_timeout_s
            case ClientPhase.HEADER:
                return waited_s > limits.header_timeout_s
            case ClientPhase.BODY:
                return waited_s > limits.body_timeout_s + body_bytes / LEAST_BODY_BYTES_PER_S
            case ClientPhase.LINGER:
                return waited_s > LINGER_S
            case _:
                return False
