"""How long executors really take against native, where a plan's shape alone makes no difference.

    torchrun --nproc-per-node 4 benchmarks/executors.py

All ranks are on one machine, so all links are equal and every plan moves as many bytes over the
slowest of them as native does (two islands of two ranks: 1/2 + 1/2 + 1/2 of the bucket, like a
ring's 2 * 3/4). What is left is the executor's own cost: its factor is measured time / native
time, paired within one run. The planner's ``CALIBRATION`` holds these factors.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.distributed as dist

from benchmarks.machine import describe, spread
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan

PLANS = {
    "native": Plan(algorithm="native", world_size=4, order=(0, 1, 2, 3)),
    "ring": Plan(algorithm="ring", world_size=4, order=(0, 2, 1, 3)),
    "hierarchical": Plan(
        algorithm="hierarchical", world_size=4, order=(0, 1, 2, 3), islands=((0, 1), (2, 3))
    ),
    "sharded": Plan(algorithm="sharded", world_size=4, order=(0, 1, 2, 3), shares=(0.25,) * 4),
}
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = 15
REPEAT = 5


def seconds(executor: Executor, buffer: torch.Tensor) -> float:
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(REPEAT):
        executor.reduce(buffer, Mark(0, buffer.nbytes)).wait()
    return (time.perf_counter() - begin) / REPEAT


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert dist.group.WORLD is not None
    group_factory = GroupFactory(dist.group.WORLD)
    executors = {name: load(name)(plan, group_factory) for name, plan in PLANS.items()}
    if dist.get_rank() == 0:
        print(describe())
    for nbytes in SIZES:
        buffer = torch.zeros(nbytes // 4)
        ratios: dict[str, list[float]] = {name: [] for name in PLANS}
        native_ms = []
        for _ in range(ROUNDS):
            times = {name: seconds(executor, buffer) for name, executor in executors.items()}
            native_ms.append(1e3 * times["native"])
            for name, taken in times.items():
                ratios[name].append(taken / times["native"])
        if dist.get_rank() == 0:
            print(f"{nbytes / 1e6:g} MB: native {spread(native_ms, ' ms')}")
            for name in list(PLANS)[1:]:
                print(f"{nbytes / 1e6:g} MB: {name} / native {spread(ratios[name])}")
    for executor in executors.values():
        executor.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
