"""Train with FSDP2 in each of ``MODES``; each rank writes its losses and digests of its shards.

shard: 1-D mesh; hybrid: 2 replicas; replicate: shards of one rank; accumulate and fp16: hybrid
with all-reduces in every second backward only, or of float16. With ``UNTIL_EPOCH`` it trains
until that plan is in force, then ``STEPS`` more. Run by tests/hooks/test_fsdp.py under torchrun,
with and without the hook (HOOKED=1), and under trainmesh launch.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

if os.environ.get("HOOKED"):
    from trainmesh.hooks import patch

    patch.install()

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

STEPS = 8
MOST_STEPS = 5_000
WIDTH = 24
UNTIL_EPOCH = int(os.environ.get("UNTIL_EPOCH", "0"))


def sharded(mode: str) -> nn.Module:
    world = dist.get_world_size()
    shape = {"shard": (world,), "replicate": (world, 1)}.get(mode, (2, world // 2))
    names = ("replicate", "shard") if len(shape) == 2 else ("shard",)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float16 if mode == "fp16" else None)
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(4)])
    for layer in model:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def epoch_of(model: nn.Module) -> int:
    install = sys.modules.get("trainmesh.hooks.fsdp.install")
    assert isinstance(model, FSDPModule)
    known = install._reductions.get(model._get_fsdp_state()._comm_ctx) if install else None
    plans = getattr(known, "_plans", None)
    return plans.epoch if plans else 0


def train(mode: str) -> dict[str, object]:
    model = sharded(mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draws = torch.Generator().manual_seed(7 + dist.get_rank())
    losses: list[float] = []
    epochs: list[int] = []
    while epochs[-STEPS:] != [UNTIL_EPOCH] * STEPS:
        assert len(losses) < MOST_STEPS, f"epoch {UNTIL_EPOCH} never came"
        if mode == "accumulate":
            assert isinstance(model, FSDPModule)
            model.set_requires_all_reduce(False)
            model(torch.randn(5, WIDTH, generator=draws)).pow(2).mean().backward()
            model.set_requires_all_reduce(True)
        loss = model(torch.randn(5, WIDTH, generator=draws)).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        epochs.append(epoch_of(model))
    shards = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
    state = b"".join(shard.detach().numpy().tobytes() for shard in shards)
    return {"losses": losses, "state": hashlib.sha256(state).hexdigest(), "epochs": epochs}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {mode: train(mode) for mode in os.environ["MODES"].split(",")}
    (Path(os.environ["OUT"]) / f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
