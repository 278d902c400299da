"""The connecting side of a measured probe: one pair, within its limits of bytes and seconds."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from ipaddress import ip_address

from msgspec.structs import replace

from trainmesh.probe.channel import Channel, ProbeOp, ask, prove
from trainmesh.probe_types import PairMeasure, ProbePair, ProbeRequest
from trainmesh.topology.measure.probing import STEP, SWEEPS, fit_cost, ladder, summary

__all__ = ["measure_ceiling", "measure_pair"]

CONNECT_S = 2.0
"""A peer in the same cluster answers in milliseconds, or not at all."""
ECHO_SHARE = 0.25
"""Share of the pair's time in which the round trips must be done."""

CEILING_BYTES = 16_000_000
"""Enough to see what the CPU can move; a matter of milliseconds on most machines."""
CEILING_S = 1.0
"""For a machine on which even that is slow."""

Samples = list[tuple[int, float]]


@dataclass
class _Taken:
    """What has been measured so far; a pair that breaks off keeps it."""

    sent: int = 0
    echoes_s: list[float] = field(default_factory=list)
    forward: Samples = field(default_factory=list)
    backward: Samples = field(default_factory=list)
    nbytes: int = 0


def measure_pair(
    request: ProbeRequest, pair: ProbePair, source: str, cancel: threading.Event
) -> PairMeasure:
    """Measure ``pair`` from its ``src``, whose address is ``source``; never raises for what the
    network or the peer does, but says it in ``problem``."""
    taken = _Taken()
    begin_s = time.monotonic()
    stop_s = begin_s + request.seconds
    problem = ""
    try:
        address = str(ip_address(pair.host))  # never a name: looking one up has no bound
        with socket.create_connection(
            (address, pair.port),
            timeout=min(CONNECT_S, max(0.01, request.seconds)),
            source_address=(source, 0),
        ) as connection:
            channel = Channel(connection, stop_s, cancel)
            prove(channel, request.token)
            _round_trips(channel, request, begin_s + ECHO_SHARE * request.seconds, taken)
            _transfers(channel, ladder(request.nbytes), stop_s, taken)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        problem = f"{pair.src} could not measure {pair.dst}: {words}"
        if isinstance(error, TimeoutError) and _is_enough(taken):
            problem = ""
    measure = _measure(pair, taken, problem)
    if request.nbytes and not problem and not (measure.forward and measure.backward):
        words = "the larger messages did not take longer; give more bytes, or more seconds"
        return replace(measure, problem=f"{pair.src} and {pair.dst}: {words}")
    return measure


def measure_ceiling(request: ProbeRequest, host: str, port: int, cancel: threading.Event) -> float:
    """Bytes a second that this agent moves to its own listener at ``host`` and ``port``; 0 if
    that can't be told."""
    small = replace(
        request,
        nbytes=min(request.nbytes, CEILING_BYTES),
        seconds=min(request.seconds, CEILING_S),
    )
    itself = ProbePair(src="this agent", dst="itself", host=host, port=port)
    measure = measure_pair(small, itself, host, cancel)
    ways = [fit.cost.bandwidth_bytes_per_s for fit in (measure.forward, measure.backward) if fit]
    return min(ways, default=0.0)


def _round_trips(channel: Channel, request: ProbeRequest, until_s: float, taken: _Taken) -> None:
    """At least one, whatever the time."""
    while taken.sent < request.echoes and (not taken.sent or time.monotonic() < until_s):
        taken.sent += 1
        taken.echoes_s.append(ask(channel, ProbeOp.ECHO))


def _transfers(channel: Channel, sizes: list[int], stop_s: float, taken: _Taken) -> None:
    """Sweep over ``sizes``, each forth and back, as long as the next exchange should be over
    before ``stop_s``."""
    last_s: dict[int, float] = {}
    for _ in range(SWEEPS):
        for size in sizes:
            expected_s = last_s.get(size) or STEP * last_s.get(size // STEP, 0.0)
            if time.monotonic() + expected_s > stop_s:
                break
            there_s = ask(channel, ProbeOp.PUSH, size)
            taken.forward.append((size, there_s))
            back_s = ask(channel, ProbeOp.PULL, size)
            taken.backward.append((size, back_s))
            taken.nbytes += 2 * size
            last_s[size] = there_s + back_s


def _is_enough(taken: _Taken) -> bool:
    return len({size for size, _ in taken.backward}) > 1


def _measure(pair: ProbePair, taken: _Taken, problem: str) -> PairMeasure:
    empty = [(0, seconds) for seconds in taken.echoes_s]
    return PairMeasure(
        src=pair.src,
        dst=pair.dst,
        unix_s=time.time(),
        round_trips=summary(taken.echoes_s, sent=taken.sent),
        forward=fit_cost(empty + taken.forward) if taken.forward else None,
        backward=fit_cost(empty + taken.backward) if taken.backward else None,
        nbytes=taken.nbytes,
        ceiling_bytes_per_s=pair.ceiling_bytes_per_s,
        problem=problem,
    )
