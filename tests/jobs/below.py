"""Training in processes below the worker that was launched: ``below.py HOW [NUM_RANKS]``."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

NUM_STEPS = 40


def train(rank: int, num_ranks: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=num_ranks)
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    for _ in range(NUM_STEPS):
        model(torch.ones(4, 64)).sum().backward()
    dist.destroy_process_group()


CONTEXTS: dict[str, ForkContext | ForkServerContext | SpawnContext] = {
    "fork": multiprocessing.get_context("fork"),
    "forkserver": multiprocessing.get_context("forkserver"),
    "spawn": multiprocessing.get_context("spawn"),
}


def start(method: str, num_ranks: int) -> None:
    address = f"file://{os.getcwd()}/meeting"  # torchrun's variables would mean its own store
    if method == "mp.spawn":
        spawn(train, (num_ranks, address), nprocs=num_ranks)
        return
    context = CONTEXTS[method]
    ranks = [context.Process(target=train, args=(r, num_ranks, address)) for r in range(num_ranks)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0


if __name__ == "__main__":
    how = sys.argv[1]
    if how == "here":
        train(-1, -1, "env://")
    elif how == "exec":
        code = "import os, sys; os.execv(sys.executable, sys.argv[1:])"
        words = [sys.executable, "-u", __file__, "here"]
        sys.exit(subprocess.run([sys.executable, "-c", code, *words], check=False).returncode)
    elif how != "nowhere":
        start(how, int(sys.argv[2]))
