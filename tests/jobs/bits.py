"""Train a small model with DDP's default buckets; rank 0 prints a digest of its parameters."""

import hashlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

STEPS = 40
WIDTH = 96


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(8)]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draws = torch.Generator().manual_seed(1 + dist.get_rank())
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, WIDTH, generator=draws)).pow(2).mean().backward()
        optimizer.step()
    if dist.get_rank() == 0:
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        print(hashlib.sha256(state).hexdigest(), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
