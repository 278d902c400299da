"""``python -m trainmesh.launcher.doctor.torch_facts``: what this Python's torch can do, as one JSON
line.

A process of its own, because it starts a (one-rank) process group, which may hang on a machine
whose name does not resolve, and because importing torch takes seconds.
"""

from __future__ import annotations

import json
import sys

__all__ = ["main"]


def _facts() -> dict[str, object]:
    import torch
    import torch.distributed as dist

    available = dist.is_available()
    return {
        "torch": torch.__version__,
        "gloo": available and dist.is_gloo_available(),
        "nccl": available and dist.is_nccl_available(),
        "cuda_devices": torch.cuda.device_count(),
    }


def _hooked_buckets() -> int:
    """Buckets that a communication hook saw in one backward pass of a DDP module."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import GradBucket, HashStore
    from torch.nn.parallel import DistributedDataParallel

    seen = []

    def hook(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.index())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # DDP compares the annotations with the objects, not with their names.
    hook.__annotations__ = {
        "bucket": GradBucket,
        "return": torch.futures.Future[torch.Tensor],
    }
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        module = DistributedDataParallel(torch.nn.Linear(2, 2))
        module.register_comm_hook(None, hook)
        module(torch.ones(1, 2)).sum().backward()
    finally:
        dist.destroy_process_group()
    return len(seen)


def main() -> int:
    """Print the facts; what fails is named in ``hook_error``."""
    facts = _facts()
    try:
        import trainmesh.hooks.ddp.registration  # noqa: F401 - what every rank imports

        facts["hooked_buckets"] = _hooked_buckets()
    except Exception as error:  # whatever an unknown version of torch raises is the finding
        facts["hook_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
