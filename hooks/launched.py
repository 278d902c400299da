"""Which world of processes is measured if a launch's workers start processes of their own.

A worker may be a launcher itself (accelerate, another torchrun) or spawn ranks. Then the ranks that
train are not those that ``trainmesh launch`` started. A job has one world. If several may live side
by side below one launch, none of them is measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TorchrunWorker", "unmeasured_reason"]


@dataclass(frozen=True)
class TorchrunWorker:
    """What torchrun's variables say in a process: whose they are."""

    rank: int
    world_size: int
    local_world_size: int
    run_id: str

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> TorchrunWorker:
        """The variables as they are; for what is missing, those of a world of one."""

        def number(name: str, default: int) -> int:
            text = environ.get(name, "")
            return int(text) if text.isascii() and text.isdigit() else default

        return cls(
            number("RANK", 0),
            number("WORLD_SIZE", 1),
            number("LOCAL_WORLD_SIZE", 1),
            environ.get("TORCHELASTIC_RUN_ID", ""),
        )

    @classmethod
    def parse(cls, text: str | None) -> TorchrunWorker | None:
        """What ``patch.install`` noted in the worker itself; None if it noted nothing."""
        fields = (text or "").split(",", 3)
        if len(fields) != 4 or not all(field.isdecimal() for field in fields[:3]):
            return None
        rank, world_size, local_world_size = map(int, fields[:3])
        return cls(rank, world_size, local_world_size, fields[3])


def unmeasured_reason(
    launched: TorchrunWorker | None, here: TorchrunWorker, rank: int, world_size: int
) -> str | None:
    """Why the world that this process trains in is not measured; None: it is.

    Args:
        launched: The launch's worker that this process is, or descends from.
        here: What the variables say here.
        rank, world_size: Of the process group, whatever the variables say.
    """
    if launched is None or launched.world_size == 1:
        return None
    is_launched = here == launched and (rank, world_size) == (launched.rank, launched.world_size)
    if is_launched:
        return None
    starts_again = here.run_id != launched.run_id
    is_on_one_node = starts_again and here.local_world_size == here.world_size
    if launched.local_world_size == 1 and not is_on_one_node:
        return None  # one worker a node starts the ranks of its node: there is one world
    return (
        f"it is not the {launched.world_size} processes that were launched, which may have started "
        "several worlds side by side; launch one process a node"
    )
