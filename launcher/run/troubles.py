"""What is wrong with the control plane now, and what happened to its processes. Each trouble is
printed once, shown by ``trainmesh status``, and part of the report.

Training goes on in any case, so nobody would notice otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec import Struct

from trainmesh.clock import SystemClock
from trainmesh.errors import WireError
from trainmesh.rundir import write_atomically
from trainmesh.types import Event, RecordLine
from trainmesh.wire import decode, encode

__all__ = ["Told", "Trouble", "Troubles", "read_told"]

SAY_AFTER_S = 5.0
"""A trouble is reported only if it lasts this long: a restarted etcd or agent is back sooner, and
its restart has been reported."""
MAX_EVENTS = 50
"""As many as a status holds (``trainmesh.coordinator``)."""


class Trouble(Struct, frozen=True, kw_only=True):
    """Something that is wrong since ``since_unix_s``."""

    text: str
    since_unix_s: float


class Told(Struct, frozen=True, kw_only=True):
    """What is wrong now, and the newest of what was said."""

    troubles: tuple[Trouble, ...] = ()
    events: tuple[Event, ...] = ()


@dataclass
class _Open:
    """What is wrong with one subject: who says so, and in which words."""

    since_s: float
    since_unix_s: float
    texts: dict[str, str] = field(default_factory=dict)
    said: str = ""


class Troubles:
    """Keeps what is wrong by its subject (``store``, ``files``, a process's name).

    Args:
        path: Where the troubles are kept for ``trainmesh status``.
        say: Prints one line.
        unix_s: Dates what is told; how long something lasts is told by ``now_s``.
    """

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None],
        unix_s: Callable[[], float] = SystemClock.unix_s,
    ) -> None:
        self._unix_s = unix_s
        self._path = path
        self._say = say
        self._open: dict[str, _Open] = {}
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def set(self, about: str, who: str, text: str, now_s: float) -> None:
        """``who`` finds ``text`` wrong with ``about``; an empty text: nothing any more."""
        if text:
            known = self._open.setdefault(about, _Open(now_s, self._unix_s()))
            known.texts[who] = text
        elif about in self._open:
            self._open[about].texts.pop(who, None)

    def happened(self, text: str, *, again: bool = False) -> None:
        """Note an event that is over already but worth a message, however short the job. ``again``:
        it is the same as last time, so it is kept but not reported once more."""
        self._tell(text, kind="process", is_said=again)
        self._publish()

    def warn(self, text: str) -> None:
        """Something was wrong, and is mended."""
        self._tell(f"warning: {text}")
        self._publish()

    def look(self, now_s: float, *, at_end: bool = False) -> None:
        """Report troubles that have lasted, and those that are over; at the end also new ones."""
        changed = False
        for about, known in list(self._open.items()):
            text = next(iter(known.texts.values()), "")
            if not text:
                del self._open[about]
                if known.said:
                    self._tell(f"over: {known.said}")
                    changed = True
            elif not known.said and (at_end or now_s - known.since_s >= SAY_AFTER_S):
                known.said = text
                self._tell(f"warning: {text}")
                changed = True
        if changed:
            self._publish()

    def lines(self) -> list[RecordLine]:
        """The messages so far, for the report; a run's record doesn't hold them."""
        return [RecordLine(event=event) for event in self._events]

    def _tell(self, text: str, *, kind: str = "warning", is_said: bool = False) -> None:
        if not is_said:
            self._say(text)
        text = text.removeprefix("warning: ")
        self._events.append(Event(unix_s=self._unix_s(), step=0, kind=kind, text=text))

    def _publish(self) -> None:
        known = tuple(
            Trouble(text=each.said, since_unix_s=each.since_unix_s)
            for each in self._open.values()
            if each.said
        )
        try:
            told = Told(troubles=known, events=tuple(self._events))
            write_atomically(self._path, encode(told))
        except OSError:
            pass  # the directory is full or gone: that is one of the troubles, and has been said


def read_told(path: Path) -> Told:
    """What ``Troubles`` has written to ``path``; nothing if it has not."""
    try:
        return decode(path.read_bytes(), Told, what=str(path))
    except (OSError, WireError):
        return Told()
