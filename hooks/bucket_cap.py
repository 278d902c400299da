"""DDP's bucket size from what the last run of the same job has learned.

DDP cuts its buckets when it is constructed, and every rank must cut them alike: rank 0 says how.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel.distributed import DistributedDataParallel

__all__ = ["ENV_BUCKET_CAP_MB", "apply"]

ENV_BUCKET_CAP_MB = "TRAINMESH_BUCKET_CAP_MB"
ATTRIBUTE = "_trainmesh_bucket_cap"
CHOSEN_BY_SCRIPT = ("bucket_cap_mb", "bucket_cap_mb_list", "device_mesh")


def apply(cap_mb: float) -> None:
    """Let DDP modules have buckets of ``cap_mb`` MiB where the script doesn't choose.

    Every rank of the job calls this, whatever it knows (0: nothing), as rank 0's value is broadcast
    when a module is constructed: one more small collective beside those that DDP does there.
    A module that synchronises nothing when it is made is left alone.
    """
    original = DistributedDataParallel.__init__
    signature = inspect.signature(original)
    if "bucket_cap_mb" not in signature.parameters or hasattr(original, ATTRIBUTE):
        return

    @functools.wraps(original)
    def wrapped(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:  # DDP itself says what is wrong
            original(self, *args, **kwargs)
            return
        given = bound.arguments
        free = all(given.get(name) is None for name in CHOSEN_BY_SCRIPT)
        if free and given.get("init_sync", True):
            agreed_mb = _agreed(cap_mb, given["module"], given.get("process_group"))
            if agreed_mb > 0:
                given["bucket_cap_mb"] = agreed_mb
        original(*bound.args, **bound.kwargs)

    setattr(wrapped, ATTRIBUTE, True)
    DistributedDataParallel.__init__ = wrapped  # type: ignore[method-assign]


def _agreed(cap_mb: float, module: torch.nn.Module, group: dist.ProcessGroup | None) -> float:
    """Rank 0's value, on all ranks; 0 where DDP can't be constructed anyway."""
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.is_meta or not dist.is_initialized():
        return 0.0
    value = torch.tensor([cap_mb], dtype=torch.float32, device=parameter.device)
    dist.broadcast(value, group=group, group_src=0)
    return float(value.item())
