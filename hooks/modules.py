"""The modules of this process that trainmesh times: their numbers, the context they share, and
their end."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch.distributed as dist

from trainmesh.hooks.context import RankContext, say
from trainmesh.types import Collective

__all__ = ["ATTRIBUTE", "Hooked", "close_all", "number", "remember", "shared_context"]

ATTRIBUTE = "_trainmesh"
"""Of the module (DDP) or of what its parts share (FSDP2)."""


class Hooked(Protocol):
    """What times a module."""

    def close(self) -> None: ...


_context: RankContext | None = None
_owners: list[weakref.ref[Any]] = []


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
    setattr(owner, ATTRIBUTE, hooked)
    if hooked is not None:
        _owners.append(weakref.ref(owner))


def close_all() -> None:
    """The process ends."""
    if not _owners and not hasattr(sys, "last_type"):
        say(
            "the script never communicated through DistributedDataParallel or FSDP2, or only "
            "through a compiled module; it ran untouched"
        )
    for reference in _owners:
        owner = reference()
        if owner is not None:
            getattr(owner, ATTRIBUTE).close()
    if _context is not None:
        _context.reporter.close()
