"""A training script whose steps are mostly spent on sending gradients: ``STEPS`` of them, of
about 1 MB each. Rank 0 prints whether all ranks have the same parameters at the end."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    draws = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(int(os.environ["STEPS"])):
        optimizer.zero_grad()
        model(torch.randn(8, 256, generator=draws)).pow(2).mean().backward()
        optimizer.step()
    own = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    others = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(others, own)
    if dist.get_rank() == 0:
        print("alike", all(torch.equal(own, other) for other in others), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
