"""Several ranks as threads of one process, joined by real gloo groups over real sockets: quick
enough for property tests of executors. (Whole jobs are in tests/jobs.)"""

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store

from trainmesh.hooks.executor import GroupFactory

Result = TypeVar("Result")


class ThreadFabric(GroupFactory):
    """Makes groups without a default process group, of which a process has only one."""

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        self._store = store
        self._made = 0
        self._timeout_s = timeout_s
        self.rank = rank
        self.world_size = world_size
        self.backend = "gloo"
        self.parent = self.new_group(range(world_size))  # type: ignore[assignment]

    def new_group(  # type: ignore[override]
        self, ranks: Sequence[int], *, backend: str | None = None
    ) -> object | None:
        self._made += 1
        if self.rank not in ranks:
            return None
        return dist.ProcessGroupGloo(
            PrefixStore(f"group{self._made}", self._store),
            list(ranks).index(self.rank),
            len(ranks),
            timedelta(seconds=self._timeout_s),
        )

    def release(self, *groups: object) -> None:
        pass  # closed when the last reference goes


def run_ranks(
    world_size: int, work: Callable[[ThreadFabric], Result], *, timeout_s: float = 30
) -> list[Result]:
    """What ``work`` returns on each rank; the first error is raised."""
    store = HashStore()

    def run(rank: int) -> Result:
        return work(ThreadFabric(store, rank, world_size, timeout_s))

    gc.collect()  # closes the connections of earlier groups, of which there are many
    with ThreadPoolExecutor(world_size) as pool:
        running = [pool.submit(run, rank) for rank in range(world_size)]
        return [future.result(timeout=4 * timeout_s) for future in running]
