"""CPU time of the dispatcher for one bucket, beside what DDP and gloo do themselves.

    torchrun --nproc-per-node 2 benchmarks/dispatcher.py

The same small model is trained by plain DDP and with the dispatcher in one process, in
alternating rounds. CPU time is that of the whole process (its gloo and autograd threads
included), so the difference is everything the hook costs: Python, callback, report.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
# A run directory without an agent: reports are encoded, and dropped at the socket.
os.environ.setdefault("TRAINMESH_RUN_DIR", tempfile.mkdtemp())

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from benchmarks.machine import describe, spread

LAYERS = 16
ROUNDS = 9
STEPS = 200


def model() -> DDP:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64, bias=False) for _ in range(LAYERS)]
    return DDP(nn.Sequential(*layers), bucket_cap_mb=0.01)


def cpu_s(ddp: DDP, steps: int) -> float:
    x = torch.ones(2, 64)
    begin = time.process_time()
    for _ in range(steps):
        ddp.zero_grad()
        ddp(x).sum().backward()
    return (time.process_time() - begin) / steps


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    plain = model()
    cpu_s(plain, 20)
    buckets = len(plain._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(","))
    original = DDP._pre_forward
    from trainmesh.hooks.registration import wrap_ddp

    wrap_ddp()
    wrapped, hooked = DDP._pre_forward, model()
    cpu_s(hooked, 20)
    costs = []
    for _ in range(ROUNDS):
        DDP._pre_forward = original
        base = cpu_s(plain, STEPS)
        DDP._pre_forward = wrapped
        costs.append(1e6 * (cpu_s(hooked, STEPS) - base) / buckets)
    if dist.get_rank() == 0:
        print(describe())
        print(
            f"dispatcher: CPU time a bucket {spread(costs, ' us')}; aim <= 50 us "
            f"({buckets} buckets a step, {dist.get_world_size()} ranks)"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
