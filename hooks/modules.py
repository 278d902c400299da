"""The modules of this process that trainmesh times: their numbers, the context they share, and
their end."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import weakref
from collections.abc import Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from trainmesh.hooks.context import RankContext
from trainmesh.rundir import ENV_RUN_DIR, RunDir
from trainmesh.types import Collective

__all__ = [
    "ATTRIBUTE",
    "Hooked",
    "any_seen",
    "close_all",
    "number",
    "remember",
    "shared_context",
]

ATTRIBUTE = "_trainmesh"
"""Of the module (DDP) or of what its parts share (FSDP2)."""


class Hooked(Protocol):
    """What times a module."""

    def close(self) -> None: ...


_context: RankContext | None = None
_owners: list[weakref.ref[Any]] = []
_seen = False


def number() -> int:
    """The next module's."""
    return len(_owners)


def shared_context(
    device: str,
    group: dist.ProcessGroup,
    *,
    collective: Collective = Collective.ALLREDUCE,
    replicas: Sequence[int] = (),
) -> RankContext:
    """The process's one, made for its first module, which is the one that plans are made for.

    Args:
        collective, replicas: As in a Hello.
    """
    global _context
    if _context is None:
        _context = RankContext(
            device, dist.get_backend(group), collective=collective, replicas=tuple(replicas)
        )
    return _context


def remember(owner: Any, hooked: Hooked | None) -> None:
    """``hooked`` times ``owner``, as long as that lives; None: it is left alone."""
    global _seen
    setattr(owner, ATTRIBUTE, hooked)
    if hooked is not None:
        _owners.append(weakref.ref(owner))
    if not _seen:
        _seen = True
        _mark_seen()


def _mark_seen() -> None:
    """Leave word for the launcher, and see to the end of a process that has no atexit."""
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
    for reference in _owners:
        owner = reference()
        if owner is not None:
            getattr(owner, ATTRIBUTE).close()
    if _context is not None:
        _context.reporter.close()
