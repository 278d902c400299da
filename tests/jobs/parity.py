"""Train small models in every way DDP offers; write what came out, a JSON file a rank.

Run by tests/hooks/test_parity.py under torchrun, with and without the hook (HOOKED=1).
"""

import copy
import gc
import hashlib
import inspect
import io
import json
import os
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import cast

if os.environ.get("HOOKED"):
    from trainmesh.hooks import patch

    patch.install()

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import BuiltinCommHookType, GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.parallel.distributed import _MixedPrecision
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

STEPS = 6
WIDTH = 24


def mlp() -> nn.Sequential:
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
        out: torch.Tensor = self.branches[(self.calls + dist.get_rank()) % 3](x)
        return out


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
        out: torch.Tensor = self.brain(self.precise(self.wide(x).double()).bfloat16())
        return out.float()


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
        out: torch.Tensor = self.dense(self.table(x[:, 0].abs().mul(3).long() % 11))
        return out


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
    model._register_builtin_comm_hook(BuiltinCommHookType.FP16_COMPRESS)
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


def left_in_eval() -> dict[str, object]:
    """Rank 0 trains on in eval mode."""
    model = DDP(mlp())
    model.train(dist.get_rank() != 0)
    return result(model, train(model, steps=4))


def no_grad_first_on_one_rank() -> dict[str, object]:
    model = DDP(mlp())
    if dist.get_rank() == 0:
        with torch.no_grad():
            model(batches()[0])
    return result(model, train(model, steps=4))


def copies() -> dict[str, object]:
    """A model is copied and saved after it has trained, by every way people have; each copy
    trains on."""
    model = DDP(mlp(), bucket_cap_mb=0.004)
    losses = train(model)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    found = {
        "deepcopy": copy.deepcopy(model),
        "torch.save": torch.load(saved, weights_only=False),
        "pickle": pickle.loads(pickle.dumps(model)),
        "AveragedModel": AveragedModel(model).module,
        "within": copy.deepcopy({"parts": [nn.Sequential(model)]})["parts"][0][0],
        "again": copy.deepcopy(copy.deepcopy(model)),
    }
    out: dict[str, object] = result(model, losses)
    for name, twin in found.items():
        out[name] = result(twin, train(twin, steps=3))
        out[f"{name} is plain"] = sorted(map(str, twin.__dict__)), repr(twin._comm_hooks)
    out["pickle names"] = b"trainmesh" in pickle.dumps(model)
    return {**out, "after": result(model, train(model, steps=3))}


def copy_on_one_rank() -> dict[str, object]:
    model = DDP(mlp())
    losses = train(model)
    if dist.get_rank() == 0:
        pickle.dumps(copy.deepcopy(model))
    other = DDP(mlp())
    return {**result(model, losses + train(model)), "other": result(other, train(other))}


def copy_of_hooked() -> dict[str, object]:
    """Of a model with a hook of the script's."""
    model = DDP(mlp())
    model.register_comm_hook(None, fp16_compress_hook)
    train(model)
    twin = copy.deepcopy(model)
    names = [hook.__qualname__ for hook, _ in twin._comm_hooks]
    before = train(twin, steps=2)
    twin.register_comm_hook(None, fp16_compress_hook)
    return {**result(twin, before + train(twin)), "names": names}


def again(model: DDP) -> str:
    """What registering a second time says."""
    try:
        model.register_comm_hook(None, fp16_compress_hook)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "nothing"


def late_hook() -> dict[str, object]:
    """Compression after a warm-up, between two steps, and between forward and backward."""
    out: dict[str, object] = {}
    hooks: list[Callable[..., Future[torch.Tensor]]]
    hooks = [fp16_compress_hook, powerSGD_hook.powerSGD_hook]
    for number, hook in enumerate(hooks):
        model = DDP(mlp(), bucket_cap_mb=0.004)
        losses = train(model, steps=5)
        power = powerSGD_hook.PowerSGDState(None, 2, start_powerSGD_iter=8)
        model.register_comm_hook(power if number else None, hook)
        losses += train(model)
        out[f"{number}"] = {**result(model, losses), "again": again(model)}
    model = DDP(mlp())
    loss = model(batches()[0]).pow(2).mean()
    model.register_comm_hook(None, fp16_compress_hook)
    loss.backward()
    out["between"] = result(model, train(model))
    out["logged"] = model._get_ddp_logging_data()["comm_hook"]
    return out


def late_builtin_hook() -> dict[str, object]:
    out: dict[str, object] = {}
    for kind in (BuiltinCommHookType.ALLREDUCE, BuiltinCommHookType.FP16_COMPRESS):
        model = DDP(mlp(), bucket_cap_mb=0.004)
        losses = train(model, steps=3)
        model._register_builtin_comm_hook(kind)
        losses += train(model)
        out[str(kind)] = {**result(model, losses), "again": again(model)}
    return out


def bad_hooks() -> dict[str, object]:
    def wrong(state: object, bucket: int) -> None: ...

    def no_future(state: object, bucket: GradBucket):  # type: ignore[no-untyped-def]
        return 7

    model = DDP(mlp())
    said = []
    for hook in (None, wrong):
        try:
            model.register_comm_hook(None, cast(Callable[..., object], hook))
        except (TypeError, ValueError) as error:
            said.append(str(error))
    model.register_comm_hook(None, no_future)
    try:
        train(model, steps=1)
    except RuntimeError as error:
        said.append(str(error).splitlines()[0])
    return {"said": said}


def optimizer_in_backward() -> dict[str, object]:
    """DDP registers a hook for it at the first forward pass; the hook wants an accelerator."""
    inner = mlp()
    _apply_optimizer_in_backward(torch.optim.SGD, inner.parameters(), {"lr": 0.05})
    model = DDP(inner)
    said = None
    try:
        loss = model(batches()[0]).sum()  # a CUDA build of torch wants it here
        said = again(model)
        loss.backward()
    except RuntimeError as error:
        return {"said": said, "error": str(error).splitlines()[0]}
    return result(model, [])


def fused_optimizer() -> dict[str, object]:
    model = DDP(mlp())
    model._register_fused_optim(torch.optim.SGD, 0.05)
    losses = []
    for x in batches():
        loss = model(x).pow(2).mean()
        loss.backward()
        losses.append(loss.item())
        model.zero_grad()
    return {**result(model, losses), "again": again(model)}


def mixed_precision() -> dict[str, object]:
    """It wants an accelerator too."""
    try:
        model = DDP(mlp(), mixed_precision=_MixedPrecision(param_dtype=torch.bfloat16))
        return result(model, train(model, steps=2))
    except RuntimeError as error:
        return {"error": str(error).splitlines()[0]}


def batched_copy() -> dict[str, object]:
    model = DDP(mlp(), bucket_cap_mb=0.004, batched_grad_copy=True)
    return result(model, train(model))


def batched_copy_kept_grads() -> dict[str, object]:
    model = DDP(mlp(), batched_grad_copy=True, gradient_as_bucket_view=True)
    return result(model, train(model, keep_grads=True))


class Driver(DDP):
    """A subclass that drives the reducer itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.require_backward_grad_sync:
            self.reducer._rebuild_buckets()
            self.reducer.prepare_for_backward([])
        out: torch.Tensor = self.module(x)
        return out


def subclass() -> dict[str, object]:
    model = Driver(mlp(), bucket_cap_mb=0.004, gradient_as_bucket_view=True)
    return result(model, train(model, keep_grads=True))


def complex_loss() -> dict[str, object]:
    model = DDP(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for x in batches():
        optimizer.zero_grad()
        turned = torch.complex(model(x).sum(), torch.zeros(())).reshape(1)
        turned.backward(gradient=torch.ones_like(turned))
        optimizer.step()
    return result(model, [])


def other_group() -> dict[str, object]:
    """The module is moved to another process group in mid-training."""
    model = DDP(mlp())
    losses = train(model, steps=3)
    everyone = dist.new_group()
    own = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    for group in (everyone, own):
        model._update_process_group(group)
        losses += train(model, steps=3)
    return result(model, losses)


def join_then_alone() -> dict[str, object]:
    """Steps after a ``Join`` context in which not all ranks had input to the end."""
    model = DDP(mlp())
    with Join([model], divide_by_initial_world_size=False):
        train(model, steps=1 + dist.get_rank())
    return result(model, train(model, steps=3))


def is_freed() -> dict[str, object]:
    found = []
    for _ in range(3):
        model = DDP(mlp())
        train(model, steps=3)
        reference = weakref.ref(model)
        del model
        gc.collect()
        found.append(reference() is None)
    return {"freed": found}


class Passing(dist.ProcessGroup):
    """A script's own process group, that torch knows nothing of."""

    def __init__(self) -> None:
        # Its stub knows only the constructor with a store.
        super().__init__(dist.get_rank(), dist.get_world_size())  # type: ignore[call-arg]
        self.calls: list[str] = []

    def _pass(self, name: str, *args: object) -> dist.Work:
        self.calls.append(name)
        work: dist.Work = getattr(dist.group.WORLD, name)(*args)
        return work

    def allreduce(self, *args: object) -> dist.Work:
        return self._pass("allreduce", *args)

    def broadcast(self, *args: object) -> dist.Work:
        return self._pass("broadcast", *args)

    def allgather(self, *args: object) -> dist.Work:
        return self._pass("allgather", *args)

    def getBackendName(self) -> str:
        return "passing"


def own_group() -> dict[str, object]:
    group = Passing()
    model = DDP(mlp(), bucket_cap_mb=0.004, process_group=group)
    backend = model._get_ddp_logging_data()["backend_name"]
    return {**result(model, train(model)), "calls": group.calls, "backend": backend}


def given_group() -> dict[str, object]:
    """The group that the script has given stays what it is, and so do torch's own records."""
    torch_knows = dist.distributed_c10d._world
    group = dist.new_group()
    model = DDP(mlp(), process_group=group)
    losses = train(model)
    dist.monitored_barrier(model.process_group)
    gathered = [torch.zeros(1) for _ in range(dist.get_world_size(model.process_group))]
    dist.all_gather(gathered, torch.ones(1), group=model.process_group)
    found = {
        "is it": model.process_group is group,
        "type": str(type(model.process_group)),
        "backend": dist.get_backend(model.process_group),
        "ranks": dist.get_process_group_ranks(model.process_group),
        "known": [len(one) for one in (torch_knows.pg_map, torch_knows.pg_names)],
        "sums": [one.item() for one in gathered],
        "logged": model._get_ddp_logging_data()["backend_name"],
    }
    return {**result(model, losses), **found}


class Checkpointed(nn.Module):
    """Runs forward passes within the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.parts = mlp()
        self._reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.requires_grad_()
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=self._reentrant)
        return x


def checkpointed() -> dict[str, object]:
    out: dict[str, object] = {}
    for reentrant in (False, True):
        model = DDP(Checkpointed(reentrant), bucket_cap_mb=0.004)
        out[str(reentrant)] = result(model, train(model))
        whole = DDP(mlp(), bucket_cap_mb=0.004)
        around = nn.Sequential(nn.Identity(), whole)
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.05)
        for x in batches(3):
            optimizer.zero_grad()
            try:
                y = checkpoint(around, x.requires_grad_(), use_reentrant=reentrant)
                y.pow(2).mean().backward()
            except RuntimeError as error:
                out[f"{reentrant} error"] = str(error).splitlines()[0]
                break
            optimizer.step()
        out[f"{reentrant} around"] = result(whole, [])
    return out


def assert_counted(model: DDP, last_step: int) -> None:
    """Our dispatcher, if there is one, is between two steps, after the step of this number."""
    if os.environ.get("HOOKED"):
        from trainmesh.hooks.ddp.registration import dispatcher_of

        dispatcher = dispatcher_of(model)
        assert dispatcher is not None
        assert (dispatcher._step, dispatcher._order._seen) == (last_step, 0)


def given_up() -> dict[str, object]:
    """A backward pass breaks off after its first buckets; the script starts the reducer anew."""

    def breaks(_: torch.Tensor) -> None:
        raise ValueError("broken off")

    model = DDP(mlp(), bucket_cap_mb=0.004)
    losses = train(model)
    handle = model.module[1].weight.register_hook(breaks)
    said = []
    for _ in range(2):
        try:
            model(batches()[0]).pow(2).mean().backward()
        except (ValueError, RuntimeError) as error:
            said.append(str(error).splitlines()[0])
    handle.remove()
    model._update_process_group(model.process_group)
    more = train(model)
    assert_counted(model, 2 * STEPS)
    # What was in flight still writes to the buckets, so that not even plain DDP's bits are certain.
    return {"losses": losses, "more": len(more), "said": said}


class WithEmpty(nn.Module):
    """One parameter has no elements, and a bucket of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.zeros(0, dtype=torch.float64))
        self.rest = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.rest(x)
        return out + self.empty.sum().float()


def empty_bucket() -> dict[str, object]:
    model = DDP(WithEmpty(), bucket_cap_mb=0.004)
    losses = train(model)
    assert_counted(model, STEPS - 1)
    return result(model, losses)


def logging_data() -> dict[str, object]:
    model = DDP(mlp())
    train(model)
    data = model._get_ddp_logging_data()
    differs = ("time", "port")  # from run to run
    return {n: value for n, value in data.items() if not any(word in n for word in differs)}


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
    "left_in_eval": left_in_eval,
    "no_grad_first_on_one_rank": no_grad_first_on_one_rank,
    "copies": copies,
    "copy_on_one_rank": copy_on_one_rank,
    "copy_of_hooked": copy_of_hooked,
    "late_hook": late_hook,
    "late_builtin_hook": late_builtin_hook,
    "bad_hooks": bad_hooks,
    "optimizer_in_backward": optimizer_in_backward,
    "fused_optimizer": fused_optimizer,
    "mixed_precision": mixed_precision,
    "batched_copy": batched_copy,
    "batched_copy_kept_grads": batched_copy_kept_grads,
    "subclass": subclass,
    "complex_loss": complex_loss,
    "other_group": other_group,
    "join_then_alone": join_then_alone,
    "is_freed": is_freed,
    "own_group": own_group,
    "given_group": given_group,
    "checkpointed": checkpointed,
    "given_up": given_up,
    "empty_bucket": empty_bucket,
    "logging_data": logging_data,
}


def main() -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    if "batched_grad_copy" not in inspect.signature(DDP).parameters:  # an older torch
        del SCENARIOS["batched_copy"], SCENARIOS["batched_copy_kept_grads"]
    results = {name: scenario() for name, scenario in SCENARIOS.items()}
    line = json.dumps({"rank": dist.get_rank(), "results": results})
    with open(f"{os.environ['OUT']}/{dist.get_rank()}.json", "w") as file:
        file.write(line)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
