"""Times of buckets and steps on one rank, by host clock or by CUDA events.

On the CPU a bucket's communication ends when its future completes. On a GPU the future
completes when the work is *enqueued*, so an event is recorded on the stream that follows the
work and is read steps later, when it has passed: no synchronisation is ever added.
"""

from __future__ import annotations

from collections import deque
from time import monotonic_ns
from typing import Protocol

import torch

from trainmesh.hooks.loss import PendingLoss
from trainmesh.types import BucketTiming, StepReport

__all__ = ["CudaMarks", "HostMarks", "Mark", "Marks", "NoMark", "StepTimer"]


class Mark:
    """Times of one bucket. Executors call ``start`` (when its communication really begins, if
    that is later than its arrival) and ``end`` (when its result is there); neither raises. A
    bucket that is reduced together with another one has that one's mark as its ``leader``."""

    __slots__ = ("arrival_ns", "end_ns", "failure", "index", "leader", "nbytes", "start_ns")

    def __init__(self, index: int, nbytes: int) -> None:
        self.index = index
        self.nbytes = nbytes
        self.arrival_ns = self.start_ns = monotonic_ns()
        self.end_ns = 0
        self.leader: Mark | None = None
        self.failure: Exception | None = None

    def start(self) -> None:
        try:
            self._start_now()
        except Exception as error:  # the bucket must go on its way
            self.failure = error

    def end(self) -> None:
        try:
            self._end_now()
        except Exception as error:  # so must its sum
            self.failure = error

    def _start_now(self) -> None:
        self.start_ns = monotonic_ns()

    def _end_now(self) -> None:
        self.end_ns = monotonic_ns()

    def timing(self) -> BucketTiming | None:
        """The finished timing; None while it is not known yet. Raises what the clock raised."""
        if self.failure is not None:
            raise self.failure
        span = (self.leader or self).span_ns()
        if span is None:
            return None
        return BucketTiming(self.index, self.nbytes, self.arrived_ns(), *span)

    def arrived_ns(self) -> int:
        """When the bucket arrived; asked for when it has ended."""
        return self.arrival_ns

    def span_ns(self) -> tuple[int, int] | None:
        """Start and end of the communication; None while they are not known yet."""
        return (self.start_ns, self.end_ns) if self.end_ns else None


class NoMark(Mark):
    """Notes nothing: where nothing is measured."""

    __slots__ = ()

    def __init__(self, index: int, nbytes: int) -> None:
        self.index = index
        self.nbytes = nbytes
        self.leader = None

    def start(self) -> None:
        pass

    def end(self) -> None:
        pass


class CudaMark(Mark):
    """A mark whose times are read from CUDA events.

    ``anchor`` was recorded on the step's first bucket together with the host's clock; event
    times are that clock plus the time elapsed since the anchor.
    """

    __slots__ = ("_anchor", "_anchor_ns", "_arrival", "_end", "_start")

    def __init__(self, index: int, nbytes: int, anchor: torch.cuda.Event, anchor_ns: int) -> None:
        super().__init__(index, nbytes)
        self._anchor = anchor
        self._anchor_ns = anchor_ns
        self._arrival = self._start = _event()
        self._end: torch.cuda.Event | None = None

    def _start_now(self) -> None:
        self._start = _event()

    def _end_now(self) -> None:
        self._end = _event()

    def arrived_ns(self) -> int:
        return self._since_anchor_ns(self._arrival)

    def span_ns(self) -> tuple[int, int] | None:
        if self._end is None or not self._end.query():
            return None
        return self._since_anchor_ns(self._start), self._since_anchor_ns(self._end)

    def _since_anchor_ns(self, event: torch.cuda.Event) -> int:
        return self._anchor_ns + int(1e6 * self._anchor.elapsed_time(event))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Marks(Protocol):
    """Makes the marks of one step."""

    def mark(self, index: int, nbytes: int) -> Mark: ...


class HostMarks:
    def mark(self, index: int, nbytes: int) -> Mark:
        return Mark(index, nbytes)


class CudaMarks:
    def __init__(self) -> None:
        self._anchor: torch.cuda.Event | None = None
        self._anchor_ns = 0

    def mark(self, index: int, nbytes: int) -> Mark:
        if index == 0 or self._anchor is None:
            self._anchor, self._anchor_ns = _event(), monotonic_ns()
        return CudaMark(index, nbytes, self._anchor, self._anchor_ns)


class _Step:
    __slots__ = ("begin_ns", "end_ns", "epoch", "loss", "marks", "number")

    def __init__(self, number: int, epoch: int, begin_ns: int) -> None:
        self.number = number
        self.epoch = epoch
        self.begin_ns = begin_ns
        self.end_ns = 0
        self.loss: PendingLoss | None = None
        self.marks: list[Mark] = []


class StepTimer:
    """Collects the marks of one DDP module's steps into StepReports.

    A step begins at its first forward and ends at the next step's. Steps whose device times are
    not known yet wait, ``MAX_OPEN`` at most; the oldest is given up then.
    """

    MAX_OPEN = 32
    DETAIL_S = 0.125
    """If steps come more often, only some are timed in detail: as many as an agent publishes
    (``agent.DETAILED_STEPS_A_REPORT``), and enough to notice a change within a second."""
    WINDOW = 64
    """Steps after which it is decided anew how many; the first ones all are."""

    def __init__(self, rank: int, module: int, marks: Marks, begin_ns: int = 0) -> None:
        """``begin_ns``: when the first step began, if it has."""
        self._rank = rank
        self._module = module
        self._marks = marks
        self._begin_ns = begin_ns
        self._current: _Step | None = None
        self._open: deque[_Step] = deque(maxlen=self.MAX_OPEN)
        self._window_ns = 0
        self._stride = 1
        self.is_detailed = True
        """Whether this step's loss is taken and its buckets are timed: one whose number is a
        multiple of a power of two, so that ranks that differ still have steps in common."""

    def forward(self) -> None:
        """A forward pass that will be followed by a backward begins."""
        if not self._begin_ns:
            self._begin_ns = monotonic_ns()

    def begin(self, number: int, epoch: int, loss: PendingLoss | None) -> list[StepReport]:
        """The first bucket of step ``number`` has arrived.

        Returns:
            The reports of earlier steps that are complete now.
        """
        begin_ns = self._begin_ns or monotonic_ns()
        self._begin_ns = 0
        self.close(begin_ns)
        self._current = _Step(number, epoch, begin_ns)
        self._current.loss = loss
        if number % self.WINDOW == 0:
            if self._window_ns:
                self._stride = self._stride_of((begin_ns - self._window_ns) / self.WINDOW / 1e9)
            self._window_ns = begin_ns
        self.is_detailed = self.is_detailed_at(number)
        return self.finished()

    def is_detailed_at(self, number: int) -> bool:
        """Whether step ``number``, the present or the next one, is timed in detail."""
        return number % self._stride == 0

    def _stride_of(self, step_s: float) -> int:
        stride = 1
        while stride < self.WINDOW and stride * step_s < self.DETAIL_S:
            stride *= 2
        return stride

    def mark(self, index: int, nbytes: int) -> Mark:
        mark = self._marks.mark(index, nbytes)
        if self._current is not None:
            self._current.marks.append(mark)
        return mark

    def close(self, end_ns: int) -> None:
        """The step in progress, if there is one, ended at ``end_ns``."""
        step, self._current = self._current, None
        if step is not None:
            step.end_ns = max(end_ns, step.begin_ns)
            self._open.append(step)

    def finished(self) -> list[StepReport]:
        """Take the reports of ended steps whose times are all known."""
        reports: list[StepReport] = []
        while self._open:
            timings = [mark.timing() for mark in self._open[0].marks]
            known = tuple(timing for timing in timings if timing is not None)
            if len(known) < len(timings):
                break
            step = self._open.popleft()
            reports.append(
                StepReport(
                    self._rank,
                    self._module,
                    step.number,
                    step.epoch,
                    step.begin_ns,
                    step.end_ns,
                    step.loss.value() if step.loss is not None else None,
                    known,
                )
            )
        return reports
