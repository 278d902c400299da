"""Carries out a timeline: changes links when their step or their time has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.lab.steps import Pace, RecordTail
from trainmesh.topology.document import LinkChange
from trainmesh.units import duration

__all__ = ["Timeline", "due", "words"]

LOOK_EVERY_S = 0.2
"""Between two looks at the job's step for changes that wait for one."""


class Timeline:
    """The changes of a lab's topology file, for one job; ``tick`` is to be called often.

    Args:
        lab: Whose links change.
        say: Called with one line of text for each change.
    """

    def __init__(self, lab: Lab, say: Callable[[str], None] = lambda text: None) -> None:
        self.pace = Pace()
        """A caller that runs a job without trainmesh sets the steps, for changes at coming
        steps."""
        self._lab = lab
        self._say = say
        self._tail = RecordTail([lab.runs_directory(host.name) for host in lab.hosts])
        self._left = list(lab.layout.timeline)
        self._start_s = time.monotonic()
        self._next_look_s = 0.0

    def tick(self) -> None:
        """Do what is due."""
        if not self._left:
            return
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_EVERY_S
            self._tail.feed(self.pace)
        step = self.pace.current(time.monotonic_ns())
        for change in due(self._left, now_s - self._start_s, step):
            self._left.remove(change)
            self._lab.apply(change)
            when = f"{now_s - self._start_s:.1f} s" if step is None else f"step {step}"
            self._say(f"{when}: {words(change)}")


def due(changes: Sequence[LinkChange], elapsed_s: float, step: int | None) -> list[LinkChange]:
    """Those of ``changes`` whose time has come, in their order.

    Args:
        changes: The remaining changes of a timeline. elapsed_s: Seconds since the start. step: The
        step that the job is in; None before the first.
    """
    return [
        change
        for change in changes
        if (change.at_s is not None and elapsed_s >= change.at_s)
        or (change.at_step is not None and (step or 0) >= change.at_step)
    ]


def words(change: LinkChange) -> str:
    """``link h3-leaf1: 100 Mbit/s``."""
    parts = []
    if change.restore:
        parts.append("restored")
    if change.down:
        parts.append("down")
    if change.bandwidth_bytes_per_s is not None:
        parts.append(f"{change.bandwidth_bytes_per_s * 8e-6:g} Mbit/s")
    if change.latency_s is not None:
        parts.append(f"latency {duration(change.latency_s)}")
    if change.loss is not None:
        parts.append(f"loss {100 * change.loss:g} %")
    arrow = "-" if change.both else "->"
    return f"link {arrow.join(change.link)}: {', '.join(parts)}"
