"""A training script that takes about ``SECONDS``; rank 0 prints its losses and parameters."""

import hashlib
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

STEPS = 120


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)]), bucket_cap_mb=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    draws = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    pause_s = float(os.environ.get("SECONDS", "4")) / STEPS
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 64, generator=draws)).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if dist.get_rank() == 0 and step % 10 == 0:
            print(f"step {step}", flush=True)
        time.sleep(pause_s)
    state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    if dist.get_rank() == 0:
        print("losses", hashlib.sha256(repr(losses).encode()).hexdigest(), flush=True)
        print("state", hashlib.sha256(state).hexdigest(), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
