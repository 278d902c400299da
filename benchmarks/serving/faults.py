"""Endpoints that are slow, refuse, die, or are far away; clients that go away."""

import json
import math
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence

from benchmarks.serving.figures import Column, Figures
from benchmarks.serving.programs import Load, Mock, slow_link
from benchmarks.serving.routers import KEY
from benchmarks.serving.scenario import FAILED, NONE_FAILED, Bench, Engine, Scenario, aim

__all__ = ["FAULTS"]

THINK_US = 5_000
"""What an engine takes for an answer."""
SLOW_US = 300_000
CLIENTS = 16
BACK_SHARE = 0.1
"""An endpoint is back when it answers this part of its fair share of requests."""
BACK_WINDOW_S = 0.5
BACK_S = 3.0
DISCONNECTS = 20


def _back_s(fleet: Sequence[Mock], index: int, load: Load) -> float:
    """Seconds from now until the endpoint has its part of the requests; inf: not before ``load``
    ends."""
    began = time.monotonic()
    seen: deque[tuple[float, list[int]]] = deque()
    while load.running():
        now = time.monotonic()
        counts = [mock.stats()["served"] for mock in fleet]
        seen.append((now, counts))
        while now - seen[0][0] > BACK_WINDOW_S:
            seen.popleft()
        served = [new - old for new, old in zip(counts, seen[0][1], strict=True)]
        if served[index] >= max(3, BACK_SHARE * sum(served) / len(fleet)):
            return now - began
        time.sleep(0.02)
    return math.inf


def _faulty(bench: Bench, wrong: Mapping[str, float], right: Mapping[str, float]) -> Figures:
    """One of four goes wrong after a healthy time, and is healed under load."""
    with bench.started([{"think_us": THINK_US}] * 4) as (fleet, router):
        healthy = bench.load(router, 3, connections=CLIENTS).result()
        fleet[3].control(**wrong)
        faulty = bench.load(router, 4, connections=CLIENTS).result()
        stream = bench.load(router, 2, connections=CLIENTS, stream=True).result()
        load = Load(router.port, seconds=10, connections=CLIENTS)
        time.sleep(1)
        fleet[3].control(**right)
        back_s = _back_s(fleet, 3, load)
        load.stop()
    return {
        "healthy_per_s": healthy.per_s,
        "kept": 100 * faulty.per_s / healthy.per_s,
        "healthy_p99_ms": healthy.total_ms.p99,
        "p50_ms": faulty.total_ms.p50,
        "p99_ms": faulty.total_ms.p99,
        "p999_ms": faulty.total_ms.p999,
        "failed": faulty.failed,
        "failed_stream": stream.failed,
        "back_s": back_s,
    }


def _slow(bench: Bench) -> Figures:
    return _faulty(bench, {"think_us": SLOW_US}, {"think_us": THINK_US})


def _refusing(bench: Bench) -> Figures:
    return _faulty(bench, {"fail": 503}, {"fail": 0})


def _killed(bench: Bench) -> Figures:
    figures: Figures = {"failed": 0}
    for kind, stream in (("", False), ("_stream", True)):
        with bench.started([{"think_us": THINK_US, "token_us": 2000 * stream}] * 4) as (fleet, at):
            load = Load(at.port, seconds=10, connections=CLIENTS, stream=stream, tokens=32)
            time.sleep(1.5)
            fleet[3].kill()
            time.sleep(2.5)
            fleet[3].start()
            back_s = _back_s(fleet, 3, load)
            result = load.result()
        figures["failed"] += result.retriable
        figures |= {
            f"retriable{kind}": result.retriable,
            f"broken{kind}": result.broken,
            f"back{kind}_s": back_s,
            f"p99{kind}_ms": result.total_ms.p99,
            f"p999{kind}_ms": result.total_ms.p999,
        }
    return figures


def _link(bench: Bench) -> Figures:
    with slow_link(4_000_000) as (netns, host):
        near: Engine = {"think_us": THINK_US}
        far: Engine = {"think_us": THINK_US, "netns": netns, "host": host}
        with bench.started([near, near, near, far]) as (_, router):
            load = bench.load(router, 4, connections=CLIENTS, prompt_bytes=8192)
            result = load.result()
    return {
        "per_s": result.per_s,
        "p50_ms": result.total_ms.p50,
        "p99_ms": result.total_ms.p99,
        "p999_ms": result.total_ms.p999,
        "failed": result.failed,
    }


def _request(stream: bool) -> bytes:
    asked = {"model": "mock", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    body = json.dumps(asked, separators=(",", ":")).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        f"\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _disconnects(bench: Bench) -> Figures:
    """20 clients go away before an answer that would take long; how many engines noticed?"""
    figures: Figures = {}
    for name, stream, options in (
        ("seen", False, {"think_us": 20_000_000}),
        ("seen_stream", True, {"think_us": 0, "token_us": 500_000}),
    ):
        with bench.started([{}] * 4) as (fleet, router):
            for mock in fleet:
                mock.control(**options)
            clients = [
                socket.create_connection(("127.0.0.1", router.port)) for _ in range(DISCONNECTS)
            ]
            for client in clients:
                client.settimeout(5)
                client.sendall(_request(stream))
            if stream:
                for client in clients:
                    client.recv(4096)
            else:
                _wait_busy(fleet, DISCONNECTS, 3)
            for client in clients:
                client.close()
            _wait_busy(fleet, 0, 2)
            figures[name] = max(0, DISCONNECTS - _busy(fleet))
    figures["missed"] = 2 * DISCONNECTS - figures["seen"] - figures["seen_stream"]
    return figures


def _busy(fleet: Sequence[Mock]) -> int:
    return sum(s["waiting"] + s["running"] for s in (mock.stats() for mock in fleet))


def _wait_busy(fleet: Sequence[Mock], wanted: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _busy(fleet) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)


P50 = Column("p50_ms", "p50 ms", 1)
P99 = Column("p99_ms", "p99 ms", 1, spread=True)
P999 = Column("p999_ms", "p99.9 ms", 1)
FAULTY = (
    Column("healthy_per_s", "healthy req/s"),
    Column("kept", "kept %", 1, spread=True),
    Column("healthy_p99_ms", "healthy p99 ms", 1),
    P50,
    P99,
    P999,
    FAILED,
    Column("failed_stream", "failed streams"),
    Column("back_s", "back after s", 1),
)
BACK = aim(f"back within {BACK_S:g} s of recovery", lambda ours: ours["back_s"] <= BACK_S)

FAULTS = (
    Scenario(
        "slow",
        "one of four takes 300 ms instead of 5, 16 clients",
        _slow,
        FAULTY,
        (
            aim("95 % of healthy throughput", lambda ours: ours["kept"] >= 95),
            aim(
                "p99 at most 1.5 x healthy",
                lambda ours: ours["p99_ms"] <= 1.5 * ours["healthy_p99_ms"],
            ),
            BACK,
            NONE_FAILED,
        ),
    ),
    Scenario(
        "503",
        "one of four answers 503, 16 clients",
        _refusing,
        FAULTY,
        (NONE_FAILED, aim("no failed stream", lambda ours: ours["failed_stream"] == 0), BACK),
    ),
    Scenario(
        "killed",
        "one of four is killed with -9 and started again 2.5 s later, 16 clients",
        _killed,
        (
            Column("retriable", "failed"),
            Column("retriable_stream", "failed streams"),
            Column("broken_stream", "broken streams"),
            P99,
            P999,
            Column("p99_stream_ms", "stream p99 ms", 1),
            Column("back_s", "back after s", 1),
            Column("back_stream_s", "back, streams", 1),
        ),
        (
            aim(
                "no failed request that could be retried",
                lambda ours: ours["failed"] == 0,
            ),
            BACK,
            aim(f"back within {BACK_S:g} s, streams", lambda ours: ours["back_stream_s"] <= BACK_S),
        ),
    ),
    Scenario(
        "link",
        "one of four behind a link of 4 Mbit/s, prompts of 8 KiB, 16 clients",
        _link,
        (Column("per_s", "req/s"), P50, P99, P999, FAILED),
        (NONE_FAILED,),
    ),
    Scenario(
        "disconnects",
        "clients go away: for how many of 20 does the engine hear of it",
        _disconnects,
        (Column("seen", "whole answers"), Column("seen_stream", "streams")),
        (aim("all of them", lambda ours: ours["missed"] == 0),),
        key="missed",
    ),
)
