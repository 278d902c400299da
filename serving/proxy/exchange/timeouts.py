"""What an answer may take: its first byte, silence within it, and the whole of it."""

from __future__ import annotations

from collections.abc import Sequence

from trainmesh.serving.config.types import LimitsConfig
from trainmesh.serving.decide.types import AttemptOutcome
from trainmesh.serving.proxy.upstream.connection import Upstream

__all__ = ["check_answer", "check_waiting"]


def check_waiting(
    live: Sequence[Upstream],
    limits: LimitsConfig,
    keepalive_s: float,
    started_s: float,
    now_s: float,
) -> None:
    """End attempts that have no first byte in time, or tell the client that its stream begins.

    Args:
        live: the attempts; no endpoint has answered.
        limits: of serve.yaml.
        keepalive_s: silence after which a stream gets a comment; 0: never.
        started_s: when the request came, in monotonic seconds.
        now_s: monotonic seconds.
    """
    for upstream in tuple(live):
        if now_s - upstream.attempt.started_s > limits.first_byte_timeout_s:
            upstream.error = f"nothing came for {limits.first_byte_timeout_s:g} s"
            upstream.lose(AttemptOutcome.TIMEOUT)
        elif 0 < keepalive_s < now_s - started_s and upstream.begin_silent(now_s):
            upstream.comment(now_s)
            return


def check_answer(
    winner: Upstream,
    limits: LimitsConfig,
    keepalive_s: float,
    started_s: float,
    now_s: float,
    *,
    slow: bool,
) -> None:
    """End an answer that is silent or takes too long, or tell the client that it goes on.

    Args:
        winner: it has begun to answer.
        limits: of serve.yaml.
        keepalive_s: silence after which a stream gets a comment; 0: never.
        started_s: when the request came, in monotonic seconds.
        now_s: monotonic seconds.
        slow: the client doesn't take what there is, so that silence is its own.
    """
    silent_s = 0.0 if slow else now_s - winner.last_byte_s
    if now_s - started_s > limits.stream_timeout_s:
        winner.error = f"the answer took more than {limits.stream_timeout_s:g} s"
        winner.lose(AttemptOutcome.STREAM)
    elif silent_s > limits.silence_timeout_s:
        winner.error = f"nothing came for {limits.silence_timeout_s:g} s"
        winner.lose(AttemptOutcome.SILENT)
    elif 0 < keepalive_s < min(silent_s, now_s - winner.commented_s):
        winner.comment(now_s)
