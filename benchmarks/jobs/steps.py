"""A plain DDP training loop whose steps are timed. Started by benchmarks/lab.py.

steps.py RESULT.json STEPS BATCH
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


class Training:
    """Two buckets: 25 MB, and a first one of 1 MB; a ``batch`` of 1 is next to no compute."""

    def __init__(self, batch: int) -> None:
        torch.manual_seed(0)
        self.model = DDP(nn.Sequential(*[nn.Linear(1290, 1290, bias=False) for _ in range(4)]))
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        self._batch = torch.randn(batch, 1290)

    def step(self) -> float:
        """Seconds that it took."""
        begin = time.perf_counter()
        self._optimizer.zero_grad()
        self.model(self._batch).pow(2).mean().backward()
        self._optimizer.step()
        return time.perf_counter() - begin


def main() -> None:
    result_file, steps, batch = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    training = Training(int(batch))
    times = [training.step() for _ in range(int(steps))]
    if int(os.environ["RANK"]) == 0:
        Path(result_file).write_text(json.dumps(times))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
