"""What a router costs on one CPU: requests, tokens, latency it adds, with and without TLS."""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving.figures import Aim, Column, Figures
from benchmarks.serving.programs import Load, Measured, Mock, Pem
from benchmarks.serving.routers import Goal, Router, Running, running

__all__ = ["AIMS", "COLUMNS", "DIRECT", "distances", "measure"]

DIRECT = "direct"
"""No router: the load generator asks an engine itself."""
STREAMS = 256
TOKENS = 32
TOKEN_S = 0.010
THINK_S = 0.005
STREAM_RATE_PER_S = STREAMS / (THINK_S + (TOKENS - 1) * TOKEN_S)
"""Streams that begin each second so that STREAMS are open at a time."""

COLUMNS = (
    Column("per_s", "req/s", spread=True),
    Column("cpu_us", "CPU us/req", 1, spread=True),
    Column("added_us", "added at c=1, us"),
    Column("p99_ms", "500/s p99 ms", 2),
    Column("kib8_us", "8 KiB CPU us", 1),
    Column("token_us", "CPU us/token", 1, spread=True),
    Column("added_ttfb_ms", "added TTFB ms", 2, spread=True),
    Column("kept", "tokens kept %", 1),
    Column("tls_per_s", "TLS req/s"),
    Column("tls_cpu_us", "TLS CPU us/req", 1),
    Column("tls_token_us", "TLS CPU us/token", 1),
    Column("tls_new_us", "TLS CPU us/connection"),
    Column("rss_mb", "RSS MB"),
    Column("failed", "failed"),
)


def _peer_ratio(peer: str, at_least: float) -> Aim:
    def met(ours: Figures, peers: Mapping[str, Figures]) -> bool | None:
        return peers[peer]["cpu_us"] / ours["cpu_us"] >= at_least if peer in peers else None

    return Aim(f"CPU per request at most 1/{at_least} of {peer}'s", met)


AIMS = (
    Aim("20 000 requests/s on one core", lambda ours, _: ours["per_s"] >= 20_000),
    Aim("50 us of CPU for a request", lambda ours, _: ours["cpu_us"] <= 50),
    Aim("25 us of CPU for a streamed token", lambda ours, _: ours["token_us"] <= 25),
    Aim(f"2 ms added TTFB at {STREAMS} streams", lambda ours, _: ours["added_ttfb_ms"] <= 2),
    _peer_ratio("vllm-router", 1.5),
    _peer_ratio("sglang-router", 2),
    _peer_ratio("smg", 2),
)


def distances(ours: Figures, peers: Mapping[str, Figures]) -> list[str]:
    """How much CPU a request costs, as a multiple of each peer's: below 1 is less."""
    return [
        f"  CPU per request {ours['cpu_us'] / theirs['cpu_us']:.2f} x {name}'s"
        f", per token {ours['token_us'] / theirs['token_us']:.2f} x"
        for name, theirs in peers.items()
        if name != DIRECT and not math.isnan(theirs["cpu_us"] + theirs["token_us"])
    ]


class _Meter:
    """Loads a port and takes the CPU time of the router behind it, if it is one."""

    def __init__(self, port: int, scale: float, router: Running | None = None):
        self._port = port
        self._scale = scale
        self._router = router
        self.failed = 0

    def load(self, seconds: float, **options: object) -> tuple[Measured, float]:
        """What was measured, and CPU seconds."""
        if self._router and self._router.pem:
            options["ca"] = self._router.pem.certificate
        before_s = self._cpu_s()
        result = Load(self._port, seconds=seconds * self._scale, **options).result()
        self.failed += result.failed
        return result, self._cpu_s() - before_s

    def _cpu_s(self) -> float:
        return self._router.cpu_s() if self._router else 0.0


def measure(
    router: Router | None, folder: Path, pem: Pem, scale: float, direct: Figures
) -> Figures:
    """One round of a router, or of none.

    Args:
        scale: how much shorter than usual.
        direct: what the same round measured without a router.

    Raises:
        Unavailable: it can't be installed, or does not come up.
    """
    with ExitStack() as stack:
        mocks = [stack.enter_context(Mock(f"e{i}", {"tokens": TOKENS})) for i in (1, 2)]
        if router is None:
            return _plain(_Meter(mocks[0].port, scale), mocks, {})
        endpoints = [mock.address for mock in mocks]
        with running(router, endpoints, Goal.CHEAP, folder) as target:
            figures = _plain(_Meter(target.port, scale, target), mocks, direct)
            figures["rss_mb"] = target.rss_bytes() / 2**20
        if router.tls:
            with running(router, endpoints, Goal.CHEAP, folder, pem) as target:
                figures |= _tls(_Meter(target.port, scale, target), mocks)
        return figures


def _per(used_s: float, n: float) -> float:
    """Microseconds each."""
    return used_s / n * 1e6 if n else math.nan


def _plain(meter: _Meter, mocks: list[Mock], direct: Figures) -> Figures:
    meter.load(1, connections=32)
    one, _ = meter.load(2, connections=1)
    many, many_s = meter.load(3, connections=32)
    steady, _ = meter.load(2, connections=64, rate=500)
    long, long_s = meter.load(2, connections=32, sessions=True, groups=200, prompt_bytes=8192)
    streams, streams_s = _streams(meter, mocks)
    c1_us, ttfb_ms = one.total_ms.p50 * 1e3, streams.first_byte_ms.p50
    return {
        "c1_us": c1_us,
        "added_us": c1_us - direct.get("c1_us", c1_us),
        "per_s": many.per_s,
        "cpu_us": _per(many_s, many.answered),
        "p99_ms": steady.total_ms.p99,
        "kib8_us": _per(long_s, long.answered),
        "ttfb_ms": ttfb_ms,
        "added_ttfb_ms": ttfb_ms - direct.get("ttfb_ms", ttfb_ms),
        "token_us": _per(streams_s, streams.answered * TOKENS),
        "kept": 100
        * streams.answered
        / max(streams.answered + streams.failed + streams.unfinished, 1),
        "failed": meter.failed,
    }


def _streams(meter: _Meter, mocks: list[Mock]) -> tuple[Measured, float]:
    """STREAMS of TOKENS, one each TOKEN_S, that begin at random times."""
    for mock in mocks:
        mock.control(think_us=THINK_S * 1e6, token_us=TOKEN_S * 1e6)
    options: dict[str, object] = {
        "connections": 2 * STREAMS,
        "stream": True,
        "tokens": TOKENS,
        "grace": 2,
    }
    meter.load(1, rate=STREAM_RATE_PER_S, **options)
    measured = meter.load(4, rate=STREAM_RATE_PER_S, **options)
    for mock in mocks:
        mock.control(think_us=0, token_us=0)
    time.sleep(0.2)
    return measured


def _tls(meter: _Meter, mocks: list[Mock]) -> Figures:
    meter.load(1, connections=32)
    many, many_s = meter.load(3, connections=32)
    new, new_s = meter.load(2, connections=16, reconnect=True)
    streams, streams_s = _streams(meter, mocks)
    return {
        "tls_per_s": many.per_s,
        "tls_cpu_us": _per(many_s, many.answered),
        "tls_new_us": _per(new_s, new.answered),
        "tls_token_us": _per(streams_s, streams.answered * TOKENS),
        "tls_failed": meter.failed,
    }
