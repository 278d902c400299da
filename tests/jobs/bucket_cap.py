"""Ranks that were told different bucket sizes construct DDP modules."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from trainmesh.hooks.bucket_cap import apply

MIB = 1024 * 1024


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for cap_mb in (2.0 + rank, 9.0):  # the second time changes nothing
        apply(cap_mb)
    model = nn.Linear(8, 8)
    caps = {
        "free": DDP(model),
        "given": DDP(model, bucket_cap_mb=7),
        "positional": DDP(model, None, None, 0, True, True, None, 7),
        "no sync": DDP(model, init_sync=False),
        "sub": DDP(model, process_group=dist.group.WORLD),
    }
    DDP(model)(torch.ones(1, 8)).sum().backward()
    try:
        DDP(model, unknown=1)  # type: ignore[call-arg]
    except TypeError as error:
        wrong = str(error)
    found = {name: module.bucket_bytes_cap / MIB for name, module in caps.items()}
    result = json.dumps({"caps": found, "wrong": wrong})
    (Path(os.environ["OUT"]) / f"{rank}.json").write_text(result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
