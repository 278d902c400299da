"""Which step a lab's job is in, from the records that its coordinators write.

A record is about a second late, but says exactly when a step ended, on a clock that all hosts of a
lab share. So the time of a coming step is known well as long as steps keep their length.
"""

from __future__ import annotations

import statistics
from collections import deque
from pathlib import Path

from trainmesh.types import RecordLine
from trainmesh.wire import decode

__all__ = ["Pace", "RecordTail"]

STEPS_REMEMBERED = 16
"""The latest ends of steps, from which the pace of the job is taken."""
MAX_AHEAD_S = 5.0
"""No report for so long means that the job stands still."""


class Pace:
    """The times of the newest steps."""

    def __init__(self) -> None:
        self._ends: deque[tuple[int, int]] = deque(maxlen=STEPS_REMEMBERED)

    def add(self, step: int, end_ns: int) -> None:
        """Step number ``step`` ended at ``end_ns`` (monotonic)."""
        if not self._ends or step > self._ends[-1][0]:
            self._ends.append((step, end_ns))

    @property
    def last(self) -> int | None:
        """The last step that is known to have ended."""
        return self._ends[-1][0] if self._ends else None

    def current(self, now_ns: int) -> int | None:
        """The step that the job is in at ``now_ns``; None before the first one has ended.

        Between two reports, each step is assumed to take the median time of the previous ones.
        """
        if not self._ends:
            return None
        last, end_ns = self._ends[-1]
        pairs = list(self._ends)
        lengths_ns = [
            (b_ns - a_ns) / (b - a) for (a, a_ns), (b, b_ns) in zip(pairs, pairs[1:], strict=False)
        ]
        if not lengths_ns or now_ns - end_ns > MAX_AHEAD_S * 1e9:
            return last + 1
        return last + 1 + int((now_ns - end_ns) / max(1.0, statistics.median(lengths_ns)))


class RecordTail:
    """Reads what has been added to the records of one job, of whose coordinators one writes.

    Args:
        directories: Where the hosts' run directories are.
    """

    def __init__(self, directories: list[Path]) -> None:
        self._directories = directories
        self._read: dict[Path, int] = {}

    def feed(self, pace: Pace) -> None:
        """Tell ``pace`` the new steps of rank 0's first DDP module."""
        for directory in self._directories:
            for path in directory.glob("trainmesh/*/record.jsonl"):
                for line in self._new_lines(path):
                    step = decode(line, RecordLine, what=str(path)).step
                    if step is not None and step.rank == 0 and step.module == 0:
                        pace.add(step.step, step.end_ns)

    def _new_lines(self, path: Path) -> list[bytes]:
        begin = self._read.get(path, 0)
        try:
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
        except OSError:
            return []  # the job has just ended
        *lines, rest = data.split(b"\n")
        self._read[path] = begin + len(data) - len(rest)
        return [line for line in lines if line.startswith(b'{"step":')]
