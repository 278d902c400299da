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

from trainmesh.rundir import write_atomically  # noqa: E402
from trainmesh.types import Hint, Plan  # noqa: E402
from trainmesh.wire import encode  # noqa: E402


def random_plan(draw: random.Random) -> Plan:
    algorithm = draw.choice(["native", "ring", "hierarchical"])
    order = list(range(WORLD))
    islands: tuple[tuple[int, ...], ...] = ()
    if algorithm == "ring":
        draw.shuffle(order)
    if algorithm == "hierarchical":
        shuffled = draw.sample(order, WORLD)
        cut = draw.randint(1, WORLD - 1)
        islands = (tuple(shuffled[:cut]), tuple(shuffled[cut:]))
    return Plan(algorithm=algorithm, world_size=WORLD, order=tuple(order), islands=islands)


class Delivery(threading.Thread):
    """Delivers the same sequence of hints to this rank as to the others, at its own pace."""

    def __init__(self, current_epoch) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self._epoch = current_epoch

    def _unusable(self, epoch: int, hint: Hint) -> bytes:
        """Something that only this rank finds in its file, and must not act on."""
        return [
            b'{"epoch":',
            encode(replace(hint, job="another")),
            encode(replace(hint, plan=replace(hint.plan, world_size=WORLD + 1))),
            encode(replace(hint, epoch=max(1, epoch - 1))),
            encode(hint).replace(b'"order":[', b'"order":[70000,'),
        ][epoch // 3 % 5]

    def run(self) -> None:
        plans = random.Random(1)
        delays = random.Random(100 + RANK)
        for epoch in range(1, SWITCHES + 1):
            hint = Hint(
                job="test", epoch=epoch, effective_step=0, plan=random_plan(plans), reason="test"
            )
            if epoch % 3 == 0 and epoch % WORLD == RANK:
                write_atomically(RUN / "hint.json", self._unusable(epoch, hint))
            if self.done.wait(delays.uniform(0, 0.03)):
                return
            write_atomically(RUN / "hint.json", encode(hint))
            while self._epoch() < epoch and not self.done.wait(0.001):
                pass


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(*[nn.Linear(17, 17) for _ in range(5)]), bucket_cap_mb=0.002)
    reference = nn.Sequential(*[nn.Linear(17, 17) for _ in range(5)])
    draws = torch.Generator().manual_seed(RANK)
    model(torch.ones(1, 17)).sum().backward()
    dispatcher = model.__dict__["_trainmesh"]
    delivery = Delivery(lambda: dispatcher._epoch)
    delivery.start()
    steps, epochs, deadline = 0, set(), time.monotonic() + 100
    while True:
        model.zero_grad()
        x = torch.randn(3, 17, generator=draws)
        model(x).pow(2).mean().backward()
        own = model.module
        reference.load_state_dict(own.state_dict())
        reference.zero_grad()
        reference(x).pow(2).mean().backward()
        grads = torch.cat([p.grad.flatten() for p in own.parameters()])
        expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
        dist.all_reduce(expected)
        torch.testing.assert_close(grads, expected / WORLD, rtol=1e-4, atol=1e-6)
        seen: list = [None] * WORLD
        digest = hashlib.sha256(grads.numpy().tobytes()).hexdigest()
        dist.all_gather_object(seen, (dispatcher._epoch, digest))
        assert len(set(seen)) == 1, f"step {steps}: ranks differ: {seen}"
        steps += 1
        epochs.add(dispatcher._epoch)
        if dispatcher._epoch >= SWITCHES:
            break
        assert time.monotonic() < deadline, f"only {dispatcher._epoch} switches"
    delivery.done.set()
    delivery.join(5)
    (BASE / f"{RANK}.json").write_text(json.dumps({"steps": steps, "epochs": sorted(epochs)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
