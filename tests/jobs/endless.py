"""A training script that trains until it is stopped, at most 200 s. Run by elastic tests."""

import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

MOST_S = 200


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)]), bucket_cap_mb=0.02)
    until_s = time.monotonic() + MOST_S
    while time.monotonic() < until_s:
        model.zero_grad()
        model(torch.ones(8, 64)).pow(2).mean().backward()
        time.sleep(0.02)


if __name__ == "__main__":
    main()
