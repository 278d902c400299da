"""Whether a request is wrong, as an endpoint says: another may be asked before it is believed."""

from __future__ import annotations

from typing import Final

from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.types import AttemptOutcome
from trainmesh.serving.proxy.exchange.attempts import RequestAttempts
from trainmesh.serving.proxy.upstream.connection import Sink, Upstream

__all__ = ["ask_another", "fall_back", "settle"]

_IN_USE: Final = (HealthState.HEALTHY, HealthState.SLOW_START)
"""Endpoints that a request is sent to which another one refused."""


def ask_another(attempts: RequestAttempts, sink: Sink, upstream: Upstream, now_s: float) -> bool:
    """``upstream`` says that the request is wrong: wait with that until another endpoint has
    said what it thinks; False if it is to be believed at once."""
    if attempts.refusing is not None or upstream.without_length:
        return False
    if len(attempts.live) == 1 and not _send_elsewhere(attempts, sink, upstream, now_s):
        return False
    attempts.live.remove(upstream)
    attempts.refusing = upstream
    upstream.hold()
    return True


def _send_elsewhere(
    attempts: RequestAttempts, sink: Sink, upstream: Upstream, now_s: float
) -> bool:
    pool = attempts.route.pool
    choice = attempts.choose(now_s)
    if choice.endpoint is None or choice.endpoint.health.state not in _IN_USE:
        upstream.attempt.confirmed = len(pool.endpoints) == 1
        return False
    endpoint, status = upstream.attempt.endpoint, upstream.answer.status
    if not pool.may_ask_again(endpoint, status, attempts.made, now_s):
        return False
    return attempts.send_again(sink, choice, choice.endpoint, now_s)


def fall_back(attempts: RequestAttempts) -> None:
    """Believe who says that the request is wrong, if nobody is left to say otherwise."""
    upstream = attempts.refusing
    if upstream is not None and not attempts.live:
        attempts.refusing = None
        attempts.live.append(upstream)
        upstream.go_on()


def settle(attempts: RequestAttempts, refusing: Upstream, other: Upstream, now_s: float) -> None:
    """Another endpoint has answered the request that ``refusing`` says is wrong."""
    attempts.refusing = None
    status = refusing.answer.status
    if other.answer.status < 300:
        attempts.route.pool.asking_paid(status)
        attempts.abandon(refusing, AttemptOutcome.LONE_ERROR, now_s)
        return
    alike = other.answer.status == status
    refusing.attempt.confirmed = other.attempt.confirmed = alike
    attempts.abandon(refusing, AttemptOutcome.CLIENT_ERROR, now_s)
