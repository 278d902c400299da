"""Entries as a worker writes them: real pools decide about made-up endpoints."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from trainmesh.serving.config.types import (
    EjectConfig,
    EndpointConfig,
    LedgerConfig,
    LimitsConfig,
    ModelConfig,
    ShadowConfig,
)
from trainmesh.serving.decide.decision_record import decision_of
from trainmesh.serving.decide.endpoint import Attempt
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.record import Decision
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    EndpointSignal,
    RequestFacts,
)
from trainmesh.serving.ledger.entry import LedgerEntry
from trainmesh.serving.ledger.writer import LedgerWriter

START_UNIX_S = 1_795_280_400.0
"""2026-11-21 17:00 UTC"""


def pool(policy: str = "hybrid", shadow: ShadowConfig | None = None) -> Pool:
    """Four endpoints: h1 and h2 near, h3 in quarantine, h4 far away."""
    names = ("h1", "h2", "h3", "h4")
    config = ModelConfig(
        endpoints=tuple(
            EndpointConfig(url=f"http://10.0.0.{n}:1", name=name) for n, name in enumerate(names, 1)
        ),
        policy=policy,
        shadow=shadow,
        eject=EjectConfig(latency_ratio=1000.0),
    )
    made = Pool(
        "m",
        config,
        limits=LimitsConfig(decision_s=10.0),
        scorers=load_scorers()[0],
        rng=random.Random(1),
        now_s=0.0,
    )
    signals = {
        "h1": EndpointSignal(name="h1", rtt_s=0.001),
        "h2": EndpointSignal(name="h2", rtt_s=0.002, bandwidth_bytes_per_s=1e6),
        "h3": EndpointSignal(
            name="h3", excluded="endpoint quarantined by admin:alice: fan is dead"
        ),
        "h4": EndpointSignal(name="h4", rtt_s=0.07),
    }
    made.update(signals, 0.0)
    return made


def facts(request_id: str, tokens: int = 400, session: bytes = b"") -> RequestFacts:
    return RequestFacts(
        request_id=request_id,
        model="m",
        tenant="gold",
        stream=True,
        nbytes=4 * tokens,
        prompt_tokens=tokens,
        output_tokens=100,
        session=session,
    )


def entry(decision: Decision, outcome: AttemptOutcome, **fields: Any) -> LedgerEntry:
    return LedgerEntry(decision=decision, outcome=outcome, **fields)


def serve(made: Pool, count: int, seed: int = 3) -> list[LedgerEntry]:
    """``count`` requests, a few at a time, each answered after a while."""
    rng = random.Random(seed)
    entries: list[LedgerEntry] = []
    now_s = 0.0
    running: list[tuple[Decision, Attempt]] = []
    for number in range(count):
        now_s += 0.01
        asked = facts(f"r{number}", rng.randrange(10, 4000), b"%d" % (number % 7))
        choice = made.choose(asked, now_s)
        assert choice.endpoint is not None
        decision = decision_of(
            choice, asked, AttemptKind.FIRST, unix_s=START_UNIX_S + now_s, snapshot=7
        )
        running.append((decision, made.begin(choice.endpoint, asked, AttemptKind.FIRST, now_s)))
        if len(running) > 6 or number == count - 1:
            for _ in range(1 if number < count - 1 else len(running)):
                entries.append(_finish(made, *running.pop(rng.randrange(len(running))), now_s))
        if number % 10 == 0:
            made.tick(now_s)
    return entries


def _finish(made: Pool, decision: Decision, attempt: Attempt, now_s: float) -> LedgerEntry:
    made.first_byte(attempt, now_s)
    made.end(attempt, AttemptOutcome.OK, now_s + 0.005, 100)
    ttft_s = now_s - attempt.started_s
    return entry(decision, AttemptOutcome.OK, status=200, ttft_s=ttft_s, duration_s=ttft_s + 0.005)


def write(folder: Path, entries: list[LedgerEntry]) -> None:
    ledger = LedgerWriter(folder, 0, LedgerConfig())
    for each in entries:
        ledger.add(each)
    ledger.close()
