"""The rank's end of the loop: reports go out, hints come in, and nothing here can hurt training.

Reports leave as non-blocking datagrams to the node's agent; what can't be sent now is kept for
the next time, up to a limit, then dropped oldest first and counted. The newest hint is a file
that the agent replaces; looking for a new one costs one ``stat``.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Protocol

from trainmesh.errors import WireError
from trainmesh.rundir import ENV_RUN_DIR, RunDir, socket_address
from trainmesh.types import CodecCost, Hello, Hint, Note, PairTime, RankReport, StepReport
from trainmesh.wire import decode, encode

__all__ = ["HintFile", "NullReporter", "Reporter", "SocketReporter", "connect"]

MAX_WAITING_STEPS = 512
"""Kept while the agent takes nothing; the oldest go first, so that memory stays bounded."""
MAX_WAITING_NOTES = 64
"""As ``MAX_WAITING_STEPS``; notes are rare."""
MAX_WAITING_PAIRS = 1024
"""As ``MAX_WAITING_STEPS``: the pairs of one rank in a job of a thousand."""
MAX_BUCKETS_A_DATAGRAM = 1_000
"""About 45 kB of JSON: a Unix datagram holds some 200 kB by default."""
FLUSH_EVERY_S = 0.5
"""Short beside the agent's second between two batches, and rare enough to cost a step nothing."""


class Reporter(Protocol):
    """Where a rank's measurements go."""

    def greet(self, hello: Hello) -> None:
        """From now on the rank is ``hello``."""
        ...

    def step(self, report: StepReport) -> None: ...

    def note(self, note: Note) -> None: ...

    def pair(self, pair: PairTime) -> None: ...

    def codec_costs(self, costs: Sequence[CodecCost]) -> None: ...

    def close(self) -> None:
        """Send what is waiting, for the last time."""
        ...


class NullReporter:
    """Goes nowhere: the script runs without a run directory."""

    def greet(self, hello: Hello) -> None:
        pass

    def step(self, report: StepReport) -> None:
        pass

    def note(self, note: Note) -> None:
        pass

    def pair(self, pair: PairTime) -> None:
        pass

    def codec_costs(self, costs: Sequence[CodecCost]) -> None:
        pass

    def close(self) -> None:
        pass


class SocketReporter:
    """Sends to the agent's socket. Every datagram carries the hello, so that an agent or a
    coordinator that was restarted knows the rank again."""

    def __init__(self, path: Path, hello: Hello) -> None:
        self._path = path
        self._hello = hello
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._steps: deque[StepReport] = deque()
        self._notes: deque[Note] = deque(maxlen=MAX_WAITING_NOTES)
        self._pairs: deque[PairTime] = deque(maxlen=MAX_WAITING_PAIRS)
        self._costs: tuple[CodecCost, ...] = ()
        self._dropped = 0
        # A rank introduces itself when its world is known, which is so after a few steps.
        waits = not hello.world and hello.world_size > 1
        self._next_flush_s = monotonic() + FLUSH_EVERY_S if waits else 0.0

    def greet(self, hello: Hello) -> None:
        self._hello = hello
        self.flush()  # what was asked for need not wait for a step

    def step(self, report: StepReport) -> None:
        if len(self._steps) >= MAX_WAITING_STEPS:
            self._steps.popleft()
            self._dropped += 1
        self._steps.append(report)
        if monotonic() >= self._next_flush_s:
            self.flush()

    def note(self, note: Note) -> None:
        self._notes.append(note)
        self.flush()

    def pair(self, pair: PairTime) -> None:
        self._pairs.append(pair)

    def codec_costs(self, costs: Sequence[CodecCost]) -> None:
        self._costs = tuple(costs)
        self.flush()

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it; never blocks, never raises."""
        self._next_flush_s = monotonic() + FLUSH_EVERY_S
        while True:
            steps, notes = self._next_batch(), tuple(self._notes)
            report = RankReport(
                hello=self._hello,
                steps=steps,
                notes=notes,
                pairs=tuple(self._pairs),
                costs=self._costs,
                dropped=self._dropped,
            )
            try:
                with socket_address(self._path) as address:
                    self._socket.sendto(encode(report), address)
            except OSError:
                return
            for _ in steps:
                self._steps.popleft()
            self._notes.clear()
            self._pairs.clear()
            self._costs = ()
            if not self._steps:
                return

    def close(self) -> None:
        self.flush()
        self._socket.close()

    def _next_batch(self) -> tuple[StepReport, ...]:
        batch: list[StepReport] = []
        room = MAX_BUCKETS_A_DATAGRAM
        for step in self._steps:
            room -= 1 + len(step.buckets)
            if batch and room < 0:
                break
            batch.append(step)
        return tuple(batch)


class HintFile:
    """The newest hint of the job, read when the file changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = str(path) if path else None
        self._seen: tuple[int, int] | None = None
        self.error: str | None = None
        """Why the newest content was not usable; None if it was."""

    def poll(self) -> Hint | None:
        """The hint, if the file holds a new valid one since the last call."""
        if self._path is None:
            return None
        try:
            stat = os.stat(self._path)
            version = (stat.st_ino, stat.st_mtime_ns)
            if version == self._seen:
                return None
            self._seen = version
            with open(self._path, "rb") as file:
                hint = decode(file.read(), Hint, what="hint")
        except OSError:
            return None
        except WireError as error:
            self.error = str(error)
            return None
        self.error = None
        return hint


def connect(hello: Hello) -> tuple[Reporter, HintFile]:
    """Reporter and hint file of the run directory that the launcher named in the environment."""
    path = os.environ.get(ENV_RUN_DIR)
    if not path:
        return NullReporter(), HintFile(None)
    run = RunDir(Path(path))
    return SocketReporter(run.socket, hello), HintFile(run.hint)
