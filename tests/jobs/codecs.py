"""Train one small model under DDP with every codec in a plain communication hook, from several
seeds; write how it ended. Run by tests/hooks/test_codecs_training.py under torchrun."""

import copy
import hashlib
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel as DDP

from trainmesh.hooks.codecs import ErrorFeedback, Gradient, GroupExchange, Layouts, codec

SEEDS = {"none": 3, "bf16": 3, "fp16": 1, "int8": 3, "powersgd:1": 1, "topk:0.03": 1}
STEPS = 150
WIDTH = 32


class State:
    def __init__(self, name: str) -> None:
        self.codec = codec(name, dist.get_world_size())
        assert dist.group.WORLD is not None
        self.exchange = GroupExchange(dist.group.WORLD)
        self.memory = ErrorFeedback()
        self.layouts = Layouts()
        self.by_step: list[int] = [0]


def hook(state: State, bucket: GradBucket) -> Future[torch.Tensor]:
    buffer = bucket.buffer().div_(state.exchange.world_size)
    gradient = Gradient(buffer, state.layouts.of(bucket.parameters()))
    state.codec.reduce(gradient, state.exchange, state.memory)
    state.by_step[-1] += 1
    if bucket.is_last():
        state.by_step.append(0)
    future: Future[torch.Tensor] = Future()
    future.set_result(buffer)
    return future


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)
    )


def train(name: str, seed: int) -> dict[str, object]:
    """Learn another network's outputs, of which each rank sees other examples."""
    teacher, start = network(2 * seed), network(2 * seed + 1)
    model, state = DDP(copy.deepcopy(start), bucket_cap_mb=0.003), State(name)
    model.register_comm_hook(state, hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    draws = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    for _ in range(STEPS):
        x = torch.randn(16, 8, generator=draws)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), teacher(x).detach()).backward()
        optimizer.step()
    with torch.no_grad():
        x = torch.randn(512, 8, generator=torch.Generator().manual_seed(99))
        loss = nn.functional.mse_loss(model(x), teacher(x)).item()
        start_loss = nn.functional.mse_loss(start(x), teacher(x)).item()
    bits = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return {
        "start": start_loss,
        "loss": loss,
        "bits": hashlib.sha256(bits).hexdigest(),
        "buckets": [state.by_step[0], state.by_step[1]],
    }


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: [train(name, seed) for seed in range(n)] for name, n in SEEDS.items()}
    (Path(os.environ["OUT"]) / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
