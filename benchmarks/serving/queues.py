"""Engines that queue: bursts, GPUs of unequal speed, conversations with prefixes in common."""

from collections.abc import Sequence

from benchmarks.serving.figures import Column, Figures
from benchmarks.serving.routers import Goal
from benchmarks.serving.scenario import FAILED, NONE_FAILED, Bench, Engine, Scenario

__all__ = ["QUEUES"]

ENGINE = {"slots": 16, "prefill_us": 25, "token_us": 4000}
"""40 prompts of 4 KB a second."""
REQUESTS: dict[str, object] = {
    "connections": 512, "stream": True, "tokens": 32, "sessions": True, "vary": True,
    "prompt_bytes": 64, "turn_bytes": 4000, "grace": 10,
}  # fmt: skip
CACHED = ENGINE | {"cache_blocks": 320}
"""160 KB: half of what the conversations below come to."""
TALKS: dict[str, object] = {
    "connections": 64, "stream": True, "tokens": 16, "sessions": True, "turns": 6,
    "prompt_bytes": 8192, "groups": 8, "turn_bytes": 1000, "grace": 10,
}  # fmt: skip


def _queued(bench: Bench, engines: Sequence[Engine], goal: Goal, **options: object) -> Figures:
    """Requests at a rate, whatever becomes of them, to engines that queue."""
    with bench.started(engines, goal) as (fleet, router):
        before = [mock.stats() for mock in fleet]
        result = bench.load(router, 12, **options).result()
        after = [mock.stats() for mock in fleet]
    asked = [a["prompt_tokens"] - b["prompt_tokens"] for a, b in zip(after, before, strict=True)]
    found = [a["cached_tokens"] - b["cached_tokens"] for a, b in zip(after, before, strict=True)]
    due = result.answered + result.failed + result.unfinished
    return {
        "answered": 100 * result.answered / max(due, 1),
        "p50_ms": result.first_byte_ms.p50,
        "p99_ms": result.first_byte_ms.p99,
        "p999_ms": result.first_byte_ms.p999,
        "whole_p99_ms": result.total_ms.p99,
        "cached": 100 * sum(found) / max(sum(asked), 1),
        "failed": result.failed + result.unfinished,
    }


def _bursts(bench: Bench) -> Figures:
    burst = {"rate": 40, "burst_rate": 400, "burst_every": 3 * bench.scale, "burst_for": 0.4}
    return _queued(bench, [ENGINE] * 4, Goal.LOAD, **(REQUESTS | burst))


def _unequal(bench: Bench) -> Figures:
    engines = [ENGINE | {"prefill_us": us} for us in (25, 25, 50, 100)]
    return _queued(bench, engines, Goal.LOAD, **(REQUESTS | {"rate": 80}))


def _sessions(bench: Bench) -> Figures:
    return _queued(bench, [CACHED] * 4, Goal.PREFIX, **(TALKS | {"rate": 120}))


def _unique(bench: Bench) -> Figures:
    return _queued(bench, [CACHED] * 4, Goal.PREFIX, **(REQUESTS | {"rate": 110}))


QUEUED = (
    Column("answered", "answered %", 1),
    Column("p50_ms", "TTFT p50 ms", 1),
    Column("p99_ms", "TTFT p99 ms", 1, spread=True),
    Column("p999_ms", "TTFT p99.9 ms", 1),
    Column("whole_p99_ms", "answer p99 ms", 1),
    Column("cached", "cached %", 1),
    FAILED,
)

QUEUES = (
    Scenario(
        "bursts",
        "40 req/s, and 400 req/s for 0.4 s of each 3 s; prompts differ in length",
        _bursts,
        QUEUED,
        (NONE_FAILED,),
    ),
    Scenario(
        "unequal",
        "GPUs of speed 4, 4, 2 and 1 at 73 % of what they can do together",
        _unequal,
        QUEUED,
        (NONE_FAILED,),
    ),
    Scenario(
        "sessions",
        "conversations under 8 system prompts, some more often; a cache holds half of them",
        _sessions,
        QUEUED,
        (NONE_FAILED,),
    ),
    Scenario(
        "unique",
        "the same policies and caches where no prompt comes twice",
        _unique,
        QUEUED,
        (NONE_FAILED,),
    ),
)
