"""Times training steps under several plans in turn, in one run. Started by benchmarks/lab.py.

forced.py PLANS.json RESULT.json ROUNDS BATCH...
"""

import json
import sys
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from benchmarks.jobs.steps import Training
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan


class Forced:
    """What DDP's hook does at the moment."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor


def hook(state: Forced, bucket: GradBucket) -> Future[torch.Tensor]:
    buffer = bucket.buffer().div_(dist.get_world_size())
    return state.executor.reduce(buffer, Mark(bucket.index(), buffer.nbytes))


def measure(executors: dict[str, Executor], batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of one step in each round, after one to warm up."""
    training = Training(batch)
    forced = Forced(next(iter(executors.values())))
    training.model.register_comm_hook(forced, hook)
    for _ in range(2):  # DDP builds its buckets
        training.step()
    times: dict[str, list[float]] = {name: [] for name in executors}
    for turn in range(rounds + 1):
        for name, forced.executor in executors.items():
            dist.barrier()
            taken = training.step()
            if turn:
                times[name].append(taken)
    return times


def main() -> None:
    plans_file, result_file, rounds, *batches = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    group_factory = GroupFactory(dist.group.WORLD)
    plans = msgspec.json.decode(Path(plans_file).read_bytes(), type=dict[str, Plan])
    executors = {name: load(plan.algorithm)(plan, group_factory) for name, plan in plans.items()}
    times = {batch: measure(executors, int(batch), int(rounds)) for batch in batches}
    if group_factory.rank == 0:
        Path(result_file).write_text(json.dumps(times))
    for executor in executors.values():
        executor.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
