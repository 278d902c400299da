"""CPU time that the dispatcher adds to one bucket.

    python benchmarks/dispatcher.py

The same small model is trained by plain DDP and with the dispatcher in one process of one rank,
in alternating rounds; the difference of the process's CPU times is everything it costs: Python in
the backward pass, timing, report and send. Of steps as short as these few have their buckets
timed; what a timed one costs, with its callback on gloo's thread, is measured too. One rank,
because a peer's waiting makes CPU times of two noisy (see overhead.py for the whole).
"""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import GradBucket, HashStore
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel as DDP

from benchmarks.machine import describe, spread
from trainmesh.hooks.ddp.registration import wrap_ddp
from trainmesh.hooks.timing import StepTimer

LAYERS = 16
ROUNDS = 15
STEPS = 200


def model() -> DDP:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(LAYERS)]
    return DDP(nn.Sequential(*layers), bucket_cap_mb=0.01)


def first(future: Future[list[torch.Tensor]]) -> torch.Tensor:
    return future.value()[0]


def bare() -> DDP:
    """A Python hook that does nothing but the all-reduce: what torch's way into Python costs."""
    group = dist.group.WORLD
    assert group is not None

    def hook(state: object, bucket: GradBucket) -> Future[torch.Tensor]:
        work = group.allreduce([bucket.buffer()])
        return work.get_future().then(first)

    ddp = model()
    ddp.register_comm_hook(None, hook)
    return ddp


def cpu_s(ddp: DDP, steps: int) -> float:
    x = torch.ones(2, 64)
    begin = time.process_time()
    for _ in range(steps):
        ddp.zero_grad()
        ddp(x).sum().backward()
    return (time.process_time() - begin) / steps


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        # An inlet that nobody reads: reports are encoded and sent until it is full.
        inlet = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        inlet.bind(f"{folder}/agent.sock")
        os.environ["TRAINMESH_RUN_DIR"] = folder
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        measure()
        dist.destroy_process_group()
        inlet.close()


def measure() -> None:
    plain, simplest = model(), bare()
    wrap_ddp()
    ours = model()
    StepTimer.DETAIL_S, detail_s = 0.0, StepTimer.DETAIL_S
    timed = model()
    modules = {"a bare Python hook with one all-reduce": simplest, "trainmesh": ours}
    modules["trainmesh, in a step whose buckets are timed"] = timed
    for ddp in (plain, *modules.values()):
        StepTimer.DETAIL_S = 0.0 if ddp is timed else detail_s
        cpu_s(ddp, 2 * StepTimer.WINDOW + 1)
    buckets = len(plain._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(","))
    costs: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(ROUNDS):
        base = cpu_s(plain, STEPS)
        for name, ddp in modules.items():
            StepTimer.DETAIL_S = 0.0 if ddp is timed else detail_s
            costs[name].append(1e6 * (cpu_s(ddp, STEPS) - base) / buckets)
    print(describe())
    for name, found in costs.items():
        print(f"{name}: CPU time a bucket {spread(found, ' us')} ({buckets} buckets a step)")
    print("aim of trainmesh <= 50 us")


if __name__ == "__main__":
    main()
