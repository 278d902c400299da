"""A short job: after its third step, when its ranks know that all are there, it waits until a plan
has reached its node. It takes 12 steps of three micro-steps (no_sync) of 40 ms of forward."""

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from trainmesh.rundir import ENV_RUN_DIR, RunDir

KEPT: list[nn.Module] = []
"""To the end of the process, as by scripts without a function."""
MICRO_STEPS, STEPS, FORWARD_S, PATIENCE_S = 3, 12, 0.04, 60.0


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(FORWARD_S)
        return x


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=os.environ.get("INIT", "env://"),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    model = DDP(nn.Sequential(nn.Linear(8, 8), Slow()))
    KEPT.append(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    hint = RunDir(Path(os.environ[ENV_RUN_DIR])).hint
    for step in range(STEPS):
        with model.no_sync():
            for _ in range(MICRO_STEPS - 1):
                model(torch.ones(2, 8)).sum().backward()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        deadline_s = time.monotonic() + PATIENCE_S
        while step == 2 and not hint.exists() and time.monotonic() < deadline_s:
            time.sleep(0.02)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
