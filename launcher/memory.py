"""What a job's last run has learned, kept for its next one:
``$XDG_CACHE_HOME/trainmesh/jobs/<job>.json``."""

from __future__ import annotations

import hashlib
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from trainmesh.errors import WireError
from trainmesh.launcher.supervisor import say
from trainmesh.rundir import job_slug, write_atomically
from trainmesh.types import JobStatus
from trainmesh.wire import decode, encode

__all__ = ["JobMemory", "memory_file", "recall", "remember"]

MIB = 1024 * 1024
MAX_BYTES = 64 * 1024
LARGEST_MB = 25
"""DDP's own. Larger ones leave less to overlap with, and would replace DDP's small first bucket;
where they pay they are fused in mid-run, from which there is a way back."""


class JobMemory(Struct, frozen=True, kw_only=True):
    """``bucket_cap_mb``: size of DDP's buckets (MiB) that made steps quickest."""

    bucket_cap_mb: Annotated[float, Meta(gt=0, le=16_384)]


def memory_file(args: Namespace, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a job is remembered: by ``--job``, else by its script's path and arguments and the
    number of its processes; buckets that are best for one batch size are not for another."""
    root = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = args.job
    if not name:
        script = os.path.abspath(args.training_script)
        same = [script, *args.training_script_args, str(args.nnodes), str(args.nproc_per_node)]
        digest = hashlib.sha256("\0".join(same).encode()).hexdigest()[:8]
        name = f"{job_slug(Path(script).stem)[:24]}-{digest}"
    return root / "trainmesh" / "jobs" / f"{name}.json"


def recall(path: Path) -> float:
    """The bucket size (MiB) that was learned; 0 if nothing was. A damaged file counts as none."""
    try:
        with path.open("rb") as file:
            return decode(file.read(MAX_BYTES), JobMemory, what=str(path)).bucket_cap_mb
    except FileNotFoundError:
        return 0.0
    except (OSError, WireError) as error:
        say(f"warning: what the last run has learned is ignored: {error}")
        return 0.0


def remember(path: Path, status_file: Path) -> None:
    """Keep what the run, whose newest JobStatus is in ``status_file``, has learned: the fusion size
    that was in force when it ended. A run that fused nothing, or more than ``LARGEST_MB``, changes
    nothing."""
    try:
        status = decode(status_file.read_bytes(), JobStatus, what=str(status_file))
    except (OSError, WireError):
        return
    hint = status.hint
    if hint is None or hint.epoch != status.epoch:
        return
    if not 0 < hint.fusion_bytes <= LARGEST_MB * MIB:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, encode(JobMemory(bucket_cap_mb=hint.fusion_bytes / MIB)))
    except OSError as error:
        say(f"warning: what this run has learned is not kept: {error}")
