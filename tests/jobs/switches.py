"""200 random plan switches in one job, each hint reaching each rank after a delay of its own.

Every step checks that all ranks ran the same epoch and got the same gradients bit for bit, and
that these are the mean of the ranks' own within tolerance. Run by tests/hooks/test_switching.py.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

BASE = Path(os.environ["OUT"])
RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])
SWITCHES = int(os.environ["SWITCHES"])
RUN = BASE / f"rank{RANK}"
RUN.mkdir()
os.environ.update(TRAINMESH_RUN_DIR=str(RUN), TRAINMESH_JOB="test", TRAINMESH_CADENCE="2")

from trainmesh.hooks import patch  # noqa: E402

patch.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from msgspec.structs import replace  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402

from trainmesh.hooks import world  # noqa: E402
from trainmesh.hooks.ddp.registration import dispatcher_of  # noqa: E402
from trainmesh.rundir import write_atomically  # noqa: E402
from trainmesh.types import Hint, Hop, Plan, Tree  # noqa: E402
from trainmesh.wire import encode  # noqa: E402


def random_trees(draw: random.Random) -> tuple[Tree, ...]:
    """One to three spanning trees with random shares."""
    weights = [draw.randint(1, 9) for _ in range(draw.randint(1, 3))]
    found = []
    for weight in weights:
        order = draw.sample(range(WORLD), WORLD)
        down = tuple(Hop(order[draw.randrange(i)], order[i]) for i in range(1, WORLD))
        up = tuple(Hop(hop.dst, hop.src) for hop in reversed(down))
        found.append(Tree(order[0], weight / sum(weights), up, down))
    return tuple(found)


def random_plan(draw: random.Random) -> Plan:
    algorithm = draw.choice(["native", "ring", "hierarchical", "sharded", "tree", "forest"])
    order = list(range(WORLD))
    plan = Plan(algorithm=algorithm, world_size=WORLD, order=tuple(order))
    shuffled = tuple(draw.sample(order, WORLD))
    if algorithm == "ring":
        return replace(plan, order=shuffled)
    if algorithm == "hierarchical":
        cut = draw.randint(1, WORLD - 1)
        return replace(plan, islands=(shuffled[:cut], shuffled[cut:]))
    if algorithm == "sharded":
        weights = [draw.randint(0, 3) for _ in order]
        weights[0] += 1
        return replace(plan, shares=tuple(weight / sum(weights) for weight in weights))
    if algorithm in ("tree", "forest"):
        return replace(plan, trees=random_trees(draw))
    return plan


def random_hint(draw: random.Random, world: int, epoch: int, before: Hint | None) -> Hint:
    """Any of plan, fusion size, codec and probing may be new."""
    plan = before.plan if before and draw.random() < 0.3 else random_plan(draw)
    return Hint(
        job="test",
        epoch=epoch,
        effective_step=0,
        plan=plan,
        reason="test",
        world=world,
        fusion_bytes=draw.choice([0, 0, 3_000, 1_000_000]),
        codec=draw.choice(["none", "none", "bf16", "fp16", "int8", "powersgd:1", "topk:0.1"]),
        probe_bytes=draw.choice([0, 0, 0, 1_000]),
    )


class Delivery(threading.Thread):
    """Delivers the same sequence of hints to this rank as to the others, at its own pace."""

    def __init__(self, world: int, current_epoch: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self._world = world
        self.done = threading.Event()
        self._epoch = current_epoch

    def _unusable(self, epoch: int, hint: Hint) -> bytes:
        """Something that only this rank finds in its file, and must not act on."""
        return [
            b'{"epoch":',
            encode(replace(hint, job="another")),
            encode(replace(hint, world=hint.world + 1)),
            encode(replace(hint, fusion_bytes=hint.fusion_bytes + 1)),
            encode(replace(hint, plan=replace(hint.plan, world_size=WORLD + 1))),
            encode(replace(hint, epoch=max(1, epoch - 1))),
            encode(hint).replace(b'"order":[', b'"order":[70000,'),
        ][epoch // 3 % 7]

    def run(self) -> None:
        plans = random.Random(1)
        delays = random.Random(100 + RANK)
        hint = None
        for epoch in range(1, SWITCHES + 1):
            hint = random_hint(plans, self._world, epoch, hint)
            if epoch % 3 == 0 and epoch % WORLD == RANK:
                write_atomically(RUN / "hint.json", self._unusable(epoch, hint))
            if self.done.wait(delays.uniform(0, 0.03)):
                return
            write_atomically(RUN / "hint.json", encode(hint))
            while self._epoch() < epoch and not self.done.wait(0.001):
                pass


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def flat_grads(model: nn.Module) -> torch.Tensor:
    """All gradients, one after the other: flat."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(*[nn.Linear(17, 17) for _ in range(5)]), bucket_cap_mb=0.002)
    reference = nn.Sequential(*[nn.Linear(17, 17) for _ in range(5)])
    draws = torch.Generator().manual_seed(RANK)
    while not world.current().number:
        model(torch.ones(1, 17)).sum().backward()
    dispatcher = dispatcher_of(model)
    assert dispatcher is not None
    delivery = Delivery(world.current().number, lambda: dispatcher.epoch)
    delivery.start()
    steps, epochs, deadline = 0, set(), time.monotonic() + 780
    exact, exact_steps, resident = True, 0, 0
    while True:
        model.zero_grad()
        x = torch.randn(3, 17, generator=draws)
        model(x).pow(2).mean().backward()
        own = model.module
        reference.load_state_dict(own.state_dict())
        reference.zero_grad()
        reference(x).pow(2).mean().backward()
        grads = flat_grads(own)
        expected = flat_grads(reference)
        dist.all_reduce(expected)
        # With a codec, and in the step after it that sends what it had left, sums are others.
        was_exact, exact = exact, not dispatcher._route.needs_parameters
        if was_exact and exact:
            torch.testing.assert_close(grads, expected / WORLD, rtol=1e-4, atol=1e-6)
            exact_steps += 1
        seen: list[object] = [None] * WORLD
        digest = hashlib.sha256(grads.numpy().tobytes()).hexdigest()
        dist.all_gather_object(seen, (dispatcher.epoch, digest))
        assert len(set(seen)) == 1, f"step {steps}: ranks differ: {seen}"
        steps += 1
        if dispatcher.epoch == SWITCHES // 2:
            resident = resident_bytes()
        epochs.add(dispatcher.epoch)
        if dispatcher.epoch >= SWITCHES:
            break
        assert time.monotonic() < deadline, f"only {dispatcher.epoch} switches"
    delivery.done.set()
    delivery.join(5)
    result = {
        "steps": steps,
        "epochs": sorted(epochs),
        "exact_steps": exact_steps,
        "grown_bytes": resident_bytes() - resident,
    }
    (BASE / f"{RANK}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
