"""Train small models in every way DDP offers; print one JSON line a rank with what came out.

Run by tests/hooks/test_parity.py under torchrun, with and without the hook (HOOKED=1).
"""

import hashlib
import json
import os
import warnings

if os.environ.get("HOOKED"):
    from trainmesh.hooks import patch

    patch.install()

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel as DDP

STEPS = 6
WIDTH = 24


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(6)])


def batches(steps: int = STEPS) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(7 + dist.get_rank())
    return [torch.randn(5, WIDTH, generator=draws) for _ in range(steps)]


def train(model: nn.Module, *, keep_grads: bool = False, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for x in batches(steps):
        optimizer.zero_grad(set_to_none=not keep_grads)
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def result(model: nn.Module, losses: list[float]) -> dict[str, object]:
    state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return {"losses": losses, "state": hashlib.sha256(state).hexdigest()}


def plain() -> dict[str, object]:
    model = DDP(mlp(), bucket_cap_mb=0.004)
    return result(model, train(model))


def bucket_view() -> dict[str, object]:
    model = DDP(mlp(), bucket_cap_mb=0.004, gradient_as_bucket_view=True)
    return result(model, train(model))


def bucket_view_kept_grads() -> dict[str, object]:
    model = DDP(mlp(), bucket_cap_mb=0.004, gradient_as_bucket_view=True)
    return result(model, train(model, keep_grads=True))


def no_sync() -> dict[str, object]:
    model = DDP(mlp(), bucket_cap_mb=0.004)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for number, x in enumerate(batches(12)):
        if number % 3 < 2:
            with model.no_sync():
                model(x).pow(2).mean().backward()
            continue
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return result(model, losses)


class Branches(nn.Module):
    """Ranks use different branches in different steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.branches[(self.calls + dist.get_rank()) % 3](x)


def find_unused() -> dict[str, object]:
    model = DDP(Branches(), find_unused_parameters=True, bucket_cap_mb=0.003)
    return result(model, train(model))


def static_graph() -> dict[str, object]:
    model = DDP(mlp(), static_graph=True, bucket_cap_mb=0.004)
    return result(model, train(model))


class MixedTypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(WIDTH, WIDTH)
        self.precise = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.brain = nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.brain(self.precise(self.wide(x).double()).bfloat16()).float()


def mixed_types() -> dict[str, object]:
    model = DDP(MixedTypes())
    losses = train(model)
    state = b"".join(p.detach().double().numpy().tobytes() for p in model.parameters())
    return {"losses": losses, "state": hashlib.sha256(state).hexdigest()}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.only * x


def tiny() -> dict[str, object]:
    model = DDP(Tiny())
    return result(model, train(model))


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, WIDTH, sparse=True)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.table(x[:, 0].abs().mul(3).long() % 11))


def sparse() -> dict[str, object]:
    model = DDP(Sparse())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for x in batches():
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return result(model, losses)


def join(divide_by_initial_world_size: bool) -> dict[str, object]:
    """Rank r has 2 r + 1 batches (the last rank joins last), rank 0 none at all."""
    model = DDP(mlp(), bucket_cap_mb=0.004)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rank = dist.get_rank()
    own = batches(2 * rank + 1) if rank else []
    with Join([model], divide_by_initial_world_size=divide_by_initial_world_size):
        for x in own:
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()
    return result(model, [])


def two_models() -> dict[str, object]:
    first, second = DDP(mlp()), DDP(mlp())
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.05)
    losses = []
    for x in batches():
        optimizer.zero_grad()
        loss = second(first(x)).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {**result(first, losses), "second": result(second, [])["state"]}


def subgroup() -> dict[str, object]:
    """DDP over pairs of ranks."""
    world, rank = dist.get_world_size(), dist.get_rank()
    groups = [dist.new_group(list(range(i, min(i + 2, world)))) for i in range(0, world, 2)]
    model = DDP(mlp(), process_group=groups[rank // 2])
    return result(model, train(model))


def user_hook() -> dict[str, object]:
    model = DDP(mlp(), bucket_cap_mb=0.004)
    model.register_comm_hook(None, fp16_compress_hook)
    return result(model, train(model))


def builtin_hook() -> dict[str, object]:
    model = DDP(mlp())
    model._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    return result(model, train(model))


def eval_on_one_rank() -> dict[str, object]:
    """A forward pass that only rank 0 makes, before any training."""
    model = DDP(mlp())
    if dist.get_rank() == 0:
        model.eval()
        with torch.no_grad():
            model(batches()[0])
        model.train()
    return result(model, train(model))


SCENARIOS = {
    "plain": plain,
    "bucket_view": bucket_view,
    "bucket_view_kept_grads": bucket_view_kept_grads,
    "no_sync": no_sync,
    "find_unused": find_unused,
    "static_graph": static_graph,
    "mixed_types": mixed_types,
    "tiny": tiny,
    "sparse": sparse,
    "join_initial": lambda: join(True),
    "join_active": lambda: join(False),
    "two_models": two_models,
    "subgroup": subgroup,
    "user_hook": user_hook,
    "builtin_hook": builtin_hook,
    "eval_on_one_rank": eval_on_one_rank,
}


def main() -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    results = {name: scenario() for name, scenario in SCENARIOS.items()}
    line = json.dumps({"rank": dist.get_rank(), "results": results})
    with open(f"{os.environ['OUT']}/{dist.get_rank()}.json", "w") as file:
        file.write(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
