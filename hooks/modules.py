"""The modules of this process that trainmesh measures: their numbers, the context they share, and
their end. Nothing of it is kept in the modules."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import weakref
from collections.abc import Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from trainmesh.hooks import world
from trainmesh.hooks.context import RankContext, say_once
from trainmesh.hooks.ending import outlive_threads
from trainmesh.rundir import ENV_RUN_DIR, RunDir
from trainmesh.types import Collective

__all__ = [
    "Closable",
    "Hooked",
    "any_seen",
    "close_all",
    "close_at_end",
    "join",
    "mark_seen",
    "shared_context",
]


class Hooked(Protocol):
    """What measures a module."""

    def finish(self) -> None: ...


class Closable(Protocol):
    """What has groups and threads."""

    def close(self) -> None: ...


_context: RankContext | None = None
_num_joined = 0
_measured: weakref.WeakSet[Hooked] = weakref.WeakSet()
_closed_at_end: weakref.WeakSet[Closable] = weakref.WeakSet()
_seen = False


def close_at_end(closable: Closable) -> None:
    """Close it as the process ends, if it still is there: who holds a group holds its store, and so
    the file of a FileStore, which the next run would read."""
    _closed_at_end.add(closable)


def join(hooked: Hooked) -> int:
    """``hooked`` makes its first reduction, as the module of this number: DDP does that at the same
    point on all ranks of a group, while a module that one rank alone has copied never gets here.
    """
    global _num_joined
    mark_seen()
    _measured.add(hooked)
    _num_joined += 1
    return _num_joined - 1


def shared_context(
    device: str,
    backend: str,
    *,
    collective: Collective = Collective.ALLREDUCE,
    replicas: Sequence[int] = (),
) -> RankContext:
    """The process's one, made for its first module, which is the one that plans are made for; made
    anew if this process has got another place among the ranks.

    Args:
        collective, replicas: As in a Hello.
    """
    global _context
    place = dist.get_rank(), dist.get_world_size()
    if _context is not None and place != (_context.hello.rank, _context.hello.world_size):
        _context.reporter.close()
        _context = None
    if _context is None:
        _context = RankContext(device, backend, collective=collective, replicas=tuple(replicas))
    return _context


def mark_seen() -> None:
    """A module that communicates was found: leave a note for the launcher, and arrange for the end
    of the process, even of one without atexit."""
    global _seen
    if _seen:
        return
    _seen = True
    atexit.register(close_all)
    if multiprocessing.parent_process() is not None:
        Finalize(None, close_all, exitpriority=0)
    run_dir = os.environ.get(ENV_RUN_DIR)
    if run_dir:
        try:
            RunDir(Path(run_dir)).seen.touch()
        except OSError:
            pass  # the launcher has gone


def any_seen() -> bool:
    """Whether a module that communicates was met, and timed or said to be left alone."""
    return _seen


def close_all() -> None:
    """The process ends."""
    for closable in list(_closed_at_end):
        try:
            closable.close()
        except Exception as error:  # an executor may be anybody's; the process ends all the same
            say_once("end", f"groups and threads can't be ended: {error!r}")
    for hooked in list(_measured):
        hooked.finish()
    if _context is not None:
        _context.reporter.close()
    world.leave_all()
    outlive_threads()
