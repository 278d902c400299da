"""Drives a measured probe through the store: which agents are there, whose turn it is, the results.

The command drives and the agents obey, so a dead agent costs only its own pair. Every key is bound
to a lease: after Ctrl-C, or if this process is killed, nothing stays behind.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from msgspec.structs import replace

from trainmesh.errors import StoreError, TrainmeshError
from trainmesh.probe_types import (
    PairMeasure,
    ProbeAnswer,
    ProbeListener,
    ProbePair,
    ProbeRequest,
    RoundTrips,
)
from trainmesh.store.base import Lease, Store, job_prefix
from trainmesh.wire import decode, encode

__all__ = ["GRACE_S", "ProbeSession", "nodes_of"]

LEASE_TTL_S = 10
"""As an agent's: what a session that has died leaves in the store is gone after this."""
READY_S = 5.0
"""An agent that is not ready by then takes no part."""
GRACE_S = 2.5
"""For connecting, fitting and the store; only a pair that breaks off ever takes it."""
POLL_S = 0.02
"""Between two looks at the store for answers of the agents."""
Pair = tuple[str, str]


def nodes_of(store: Store, job: str) -> list[str]:
    """The nodes whose agents are alive."""
    prefix = f"{job_prefix(job)}agents/"
    return [entry.key.removeprefix(prefix) for entry in store.list(prefix)[0]]


class ProbeSession:
    """One command's hold on a job's agents; a context manager.

    Args:
        store: The job's store.
        job: The job's name.
        backend: The job's backend, which decides the interface.
        nbytes: Payload of one pair at most, both directions together.
        seconds: Time of one pair at most.
        echoes: Round trips of one pair at most.
        total_s: Time of all turns together at most; the agents stop listening after it.

    Raises:
        TrainmeshError: another command probes this job now.
    """

    def __init__(
        self,
        store: Store,
        job: str,
        *,
        backend: str,
        nbytes: int,
        seconds: float,
        echoes: int,
        total_s: float,
    ) -> None:
        self.listeners: dict[str, ProbeListener] = {}
        """Of the agents that are ready, by node."""
        self.problems: dict[str, str] = {}
        """Of the others, by node."""
        self._silent: set[str] = set()
        self._store = store
        self._prefix = job_prefix(job)
        self._lease: Lease | None = None
        self._request = ProbeRequest(
            id=secrets.token_hex(8),
            token=secrets.token_hex(32),
            backend=backend,
            nbytes=nbytes,
            seconds=seconds,
            echoes=echoes,
            open_s=total_s + READY_S,
        )

    def __enter__(self) -> ProbeSession:
        self._lease = self._store.lease(LEASE_TTL_S)
        try:
            self._own()
            self._put(self._request)
        except BaseException:
            self._lease.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lease is not None:
            self._lease.close()

    def wait_ready(self, nodes: Sequence[str]) -> None:
        """Sort ``nodes`` into ``listeners`` and ``problems``; bounded."""
        deadline_s = time.monotonic() + READY_S
        prefix = f"{self._prefix}probe/ready/"
        missing = set(nodes)
        while missing and time.monotonic() < deadline_s:
            for entry in self._store.list(prefix)[0]:
                node = entry.key.removeprefix(prefix)
                listener = decode(entry.value, ProbeListener, what=entry.key)
                if node not in missing or listener.id != self._request.id:
                    continue
                missing.discard(node)
                if listener.problem:
                    self.problems[node] = listener.problem
                else:
                    self.listeners[node] = listener
            time.sleep(POLL_S)
        for node in missing:
            self.problems[node] = f"the agent does not answer in {READY_S:g} s"

    def turn(
        self, pairs: Sequence[Pair], seconds: float, answered: Callable[[], object] = lambda: None
    ) -> list[PairMeasure]:
        """Let ``pairs`` of ready nodes measure at the same time, ``seconds`` at most; in their
        order. A pair that doesn't answer has a problem, and its node is not asked again.

        Args:
            answered: Called as pairs are done.
        """
        asked = [pair for pair in pairs if pair[0] not in self._silent]
        self._request = replace(
            self._request,
            turn=self._request.turn + 1,
            seconds=seconds,
            pairs=tuple(self._pair(src, dst) for src, dst in asked),
        )
        self._put(self._request)
        deadline_s = time.monotonic() + seconds + GRACE_S
        found: dict[Pair, PairMeasure] = {}
        while len(found) < len(asked) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            for measure in self._answers():
                if (measure.src, measure.dst) not in found:
                    found[measure.src, measure.dst] = measure
                    answered()
        self._silent |= {src for src, dst in asked if (src, dst) not in found}
        return [found.get(pair) or self.failed(pair) for pair in pairs]

    def failed(self, pair: Pair, why: str = "") -> PairMeasure:
        """What is known of a pair that did not answer."""
        known = [f"{node}: {self.problems[node]}" for node in pair if node in self.problems]
        return PairMeasure(
            src=pair[0],
            dst=pair[1],
            unix_s=time.time(),
            round_trips=RoundTrips(sent=0, received=0),
            problem=why or "; ".join(known) or f"{pair[0]}: the agent did not answer",
        )

    def _own(self) -> None:
        name = f"process {os.getpid()} on {socket.gethostname()}"
        prefix = f"{self._prefix}probe/owner/"
        assert self._lease is not None  # noqa: S101 - __enter__ made it
        if self._store.elect(prefix, name.encode(), self._lease, timeout_s=0.0) is None:
            entries = self._store.list(prefix)[0]
            first = min(entries, key=lambda entry: entry.create_revision, default=None)
            owner = first.value.decode(errors="replace") if first is not None else "another process"
            raise TrainmeshError(f"{owner} probes this job now; try again when it has ended")

    def _put(self, request: ProbeRequest) -> None:
        if self._lease is None or self._lease.lost:
            raise StoreError("the probe's lease has expired: etcd was out of reach for too long")
        self._store.put(f"{self._prefix}probe/request", encode(request), self._lease)

    def _pair(self, src: str, dst: str) -> ProbePair:
        listener = self.listeners[dst]
        ceilings = (self.listeners[node].ceiling_bytes_per_s for node in (src, dst))
        return ProbePair(
            src=src,
            dst=dst,
            host=listener.host,
            port=listener.port,
            ceiling_bytes_per_s=min(ceilings),
        )

    def _answers(self) -> list[PairMeasure]:
        answers = [
            decode(entry.value, ProbeAnswer, what=entry.key)
            for entry in self._store.list(f"{self._prefix}probe/answers/")[0]
        ]
        now = (self._request.id, self._request.turn)
        return [answer.measure for answer in answers if (answer.id, answer.turn) == now]
