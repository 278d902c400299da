"""Measures one module's steps and talks to the agent. Nothing here raises into training.

A failure ends that part of the measuring on this rank alone, and is reported once. Actions that all
ranks must take alike (``switching``) never depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns

import torch
import torch.distributed as dist

from trainmesh.hooks import loss
from trainmesh.hooks.context import RankContext, say, say_once
from trainmesh.hooks.route.coding_cost import CodingCosts, times_codecs
from trainmesh.hooks.timing import CudaMarks, HostMarks, Mark, NoMark, StepTimer
from trainmesh.types import Hint, PairTime

__all__ = ["ModuleObserver"]


class ModuleObserver:
    """Of one module on one rank. ``join`` is called at its first step: the context that all
    modules share, and the module's number."""

    def __init__(self, device_type: str, join: Callable[[], tuple[RankContext, int]]) -> None:
        self._marks = CudaMarks() if device_type == "cuda" else HostMarks()
        self._join = join
        self._context: RankContext | None = None
        self._number = 0
        self._timer: StepTimer | None = None
        self._coding: CodingCosts | None = None
        self._forward_ns = 0
        """When the first forward pass began, until there is a timer."""
        self._is_broken = False

    @property
    def settings(self) -> str:
        """The settings that must be equal on every rank for agreement.

        Raises:
            RuntimeError: this rank has no context.
        """
        return f"cadence {self.cadence}"

    @property
    def cadence(self) -> int:
        return self._known().cadence

    @property
    def node(self) -> str:
        return self._known().hello.node

    @property
    def is_first(self) -> bool:
        """Whether it is the module whose steps hints count, which was the first to reduce."""
        return self._number == 0

    def open(self) -> None:
        """The module is about to make its first reduction."""
        try:
            context, number = self._join()
            self._timer = StepTimer(context.hello.rank, number, self._marks, self._forward_ns)
            if times_codecs(context.hello, number):
                self._coding = CodingCosts(context)
            self._context, self._number = context, number
        except Exception as error:  # training goes on, whatever it is
            self._break(error)

    def forward(self) -> None:
        """A forward pass that will be followed by a reduction begins."""
        try:
            if self._timer is not None:
                self._timer.forward()
            elif not self._forward_ns:
                self._forward_ns = monotonic_ns()
        except Exception as error:
            self._break(error)

    def begin(self, step: int, epoch: int) -> None:
        """The first bucket of ``step`` has arrived."""
        if self._timer is None or self._context is None or self._is_broken:
            return
        try:
            for report in self._timer.begin(step, epoch, loss.take()):
                self._context.reporter.step(report)
            loss.want(self._timer.is_detailed_at(step + 1))
        except Exception as error:
            loss.want(True)
            self._break(error)

    def mark(self, index: int, nbytes: int) -> Mark:
        """The mark that takes a bucket's times; if steps are many and short, most have none."""
        if self._timer is None or not self.times_buckets:
            return NoMark(index, nbytes)
        try:
            return self._timer.mark(index, nbytes)
        except Exception as error:
            self._break(error)
            return NoMark(index, nbytes)

    def await_end(self, work: dist.Work, mark: Mark) -> None:
        """``mark`` ends when ``work`` does. It takes the GIL on a thread of the backend's, which
        is why most of many short steps do without."""
        if isinstance(mark, NoMark):
            return
        try:
            work.get_future().add_done_callback(lambda _: mark.end())
        except Exception as error:  # a group of the script's own making may have no futures
            self._break(error)

    @property
    def times_codecs(self) -> bool:
        """Whether to ``see`` buckets is of any use."""
        return self._coding is not None

    @property
    def times_buckets(self) -> bool:
        """Whether marks are noted in this step."""
        return self._timer is not None and not self._is_broken and self._timer.is_detailed

    def see(self, step: int, parameters: Sequence[torch.Tensor], buffer: torch.Tensor) -> None:
        """A bucket of ``step``, of these parameters, is ready: for what codecs would cost."""
        if self._coding is None:
            return
        try:
            self._coding.see(step, parameters, buffer)
        except Exception as error:
            self._coding = None
            self.warn(f"codecs can't be timed: {error!r}", step=step)

    def join_world(self, number: int) -> None:
        """All ranks of the job are there, in the world of this number."""
        try:
            self._known().join(number)
        except Exception as error:
            say_once("world", f"the agent can't be told which world this is: {error!r}")

    def note_split(self, step: int) -> None:
        """Not every rank holds the hint that this one holds."""
        try:
            self._known().note_split(step)
        except Exception as error:
            say_once("notes", f"notes can't be sent: {error!r}")

    def newest_hint(self) -> Hint | None:
        """The newest valid hint that has reached this rank; None also where none can be read."""
        try:
            return self._known().newest_hint()
        except Exception as error:
            say_once("hints", f"no plan can be read: {error!r}")
            return None

    def note(self, kind: str, text: str, *, step: int = 0, epoch: int = 0) -> None:
        if self._context is None:
            return
        try:
            self._context.note(kind, text, step=step, epoch=epoch)
        except Exception as error:
            say_once("notes", f"notes can't be sent: {error!r}")

    def warn(self, text: str, *, step: int = 0) -> None:
        """In a line, in status and in the report."""
        say(text)
        self.note("warning", text, step=step)

    def pair(self, pair: PairTime) -> None:
        try:
            self._known().reporter.pair(pair)
        except Exception as error:
            say_once("pairs", f"measures of links can't be sent: {error!r}")

    def finish(self) -> None:
        """No step follows: report what was measured."""
        loss.want(True)
        if self._timer is None or self._context is None or self._is_broken:
            return
        try:
            self._timer.close(monotonic_ns())
            for report in self._timer.finished():
                self._context.reporter.step(report)
        except Exception as error:
            self._break(error)

    def _known(self) -> RankContext:
        if self._context is None:
            raise RuntimeError("this rank is not measured")
        return self._context

    def _break(self, error: Exception) -> None:
        if not self._is_broken:
            self._is_broken = True
            say_once("measuring", f"measuring ended, training goes on: {error!r}")
            self.note("warning", f"measuring ended: {error!r}")
