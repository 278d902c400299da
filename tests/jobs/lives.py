"""A process group is destroyed and made anew, three times, as notebooks and hyperparameter searches
do; the first life's module stays. One JSON file a rank. Run by tests/hooks/test_lives.py."""

import json
import os
from pathlib import Path

if os.environ.get("HOOKED"):
    from trainmesh.hooks import patch

    patch.install()

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

BASE = Path(os.environ["OUT"])


def train(steps: int) -> tuple[DDP, float]:
    torch.manual_seed(0)
    model = DDP(nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        loss = model(torch.randn(4, 8, generator=draws)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss.item()


def main() -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    losses, kept, worlds = [], [], []
    for life in range(3):
        store = f"file://{BASE}/store{life}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        model, loss = train(steps=20)
        losses.append(loss)
        kept.append(model)
        if os.environ.get("HOOKED"):
            from trainmesh.hooks import world

            worlds.append(world.current().channel is not None)
        dist.destroy_process_group()
    (BASE / f"{rank}.json").write_text(json.dumps({"losses": losses, "worlds": worlds}))


if __name__ == "__main__":
    main()
