"""Times all-reduces by several plans in turn, in one run. Started by benchmarks/lab.py.

allreduce.py PLANS.json RESULT.json BYTES ROUNDS
"""

import json
import sys
import time
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan


def seconds(executor: Executor, buffer: torch.Tensor) -> float:
    """Of the slowest rank."""
    dist.barrier()
    begin = time.perf_counter()
    executor.reduce(buffer, Mark(0, buffer.nbytes)).wait()
    taken = torch.tensor([time.perf_counter() - begin], dtype=torch.float64)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def main() -> None:
    plans_file, result_file, nbytes, rounds = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    group_factory = GroupFactory(dist.group.WORLD)
    plans = msgspec.json.decode(Path(plans_file).read_bytes(), type=dict[str, Plan])
    buffer = torch.zeros(int(nbytes) // 4)
    executors = {name: load(plan.algorithm)(plan, group_factory) for name, plan in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(int(rounds) + 1):
        for name, executor in executors.items():
            taken = seconds(executor, buffer)
            if turn:
                times[name].append(taken)
    if group_factory.rank == 0:
        Path(result_file).write_text(json.dumps(times))
    for executor in executors.values():
        executor.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
