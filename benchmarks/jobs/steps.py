"""A plain DDP training loop whose steps are timed. Started by benchmarks/lab.py.

steps.py RESULT.json STEPS COMPUTE
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


def main() -> None:
    result_file, steps, compute = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    # Two buckets: 25 MB, and a first one of 1 MB.
    model = DDP(nn.Sequential(*[nn.Linear(1290, 1290, bias=False) for _ in range(4)]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batch = torch.randn(int(compute), 1290)
    times = []
    for _ in range(int(steps)):
        begin = time.perf_counter()
        optimizer.zero_grad()
        model(batch).pow(2).mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    if int(os.environ["RANK"]) == 0:
        Path(result_file).write_text(json.dumps(times))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
