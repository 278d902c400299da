"""hierarchical: reduce-scatter inside islands, all-reduce across, all-gather inside.

BlueConnect's decomposition (Cho et al., MLSys 2019). With islands of unequal size it reduces to
one leader an island, all-reduces over the leaders and broadcasts back. The levels run one after
the other; buckets overlap with the backward pass but not with each other.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.futures import Future

from trainmesh.errors import PlanError
from trainmesh.hooks.executor import Fabric
from trainmesh.hooks.timing import Mark
from trainmesh.types import Plan

__all__ = ["HierarchicalExecutor"]

Job = tuple[torch.Tensor, Mark, "Future[torch.Tensor]"]


class HierarchicalExecutor:
    """Runs buckets one by one on a thread of its own: gloo has no future for a reduce-scatter.

    CPU tensors only: a CUDA version needs streams of its own and is refused until it has them.
    """

    def __init__(self, plan: Plan, fabric: Fabric) -> None:
        if dist.get_backend(fabric.parent) != "gloo":
            raise PlanError("hierarchical runs on gloo groups only")
        self._fabric = fabric
        island = next(island for island in plan.islands if fabric.rank in island)
        self._island_size = len(island)
        self._equal = len({len(other) for other in plan.islands}) == 1
        self._leader = island[0]
        self._inside = _own_group(fabric, plan.islands)
        width = self._island_size if self._equal else 1
        across = [[other[place] for other in plan.islands] for place in range(width)]
        self._across = _own_group(fabric, across)
        self._scratch: dict[tuple[torch.dtype, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="trainmesh-hier", daemon=True)
        self._thread.start()

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        future: Future[torch.Tensor] = Future()
        self._jobs.put((buffer, mark, future))
        return future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(timeout=5.0)
        self._fabric.release(self._inside, self._across)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            buffer, mark, future = job
            mark.start()
            try:
                if self._equal:
                    self._scatter_reduce_gather(buffer)
                else:
                    self._reduce_broadcast(buffer)
                mark.end()
                future.set_result(buffer)
            except RuntimeError as error:  # a peer or link is gone: the training script must know
                future.set_exception(error)  # type: ignore[arg-type]

    def _scatter_reduce_gather(self, buffer: torch.Tensor) -> None:
        padded, shard = self._buffers(buffer)
        if padded is not buffer:
            padded[: buffer.numel()].copy_(buffer)
            padded[buffer.numel() :].zero_()
        dist.reduce_scatter_single(shard, padded, group=self._inside)
        dist.all_reduce(shard, group=self._across)
        dist.all_gather_single(padded, shard, group=self._inside)
        if padded is not buffer:
            buffer.copy_(padded[: buffer.numel()])

    def _buffers(self, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``buffer`` (or a copy padded to whole shards) and a shard, reused from step to step."""
        key = (buffer.dtype, buffer.numel())
        if key not in self._scratch:
            shard_numel = -(-buffer.numel() // self._island_size)
            padded = buffer.new_empty(shard_numel * self._island_size)
            self._scratch[key] = (padded, buffer.new_empty(shard_numel))
        padded, shard = self._scratch[key]
        return (buffer if padded.numel() == buffer.numel() else padded), shard

    def _reduce_broadcast(self, buffer: torch.Tensor) -> None:
        dist.reduce(buffer, dst=self._leader, group=self._inside)
        if self._across is not None:
            dist.all_reduce(buffer, group=self._across)
        dist.broadcast(buffer, src=self._leader, group=self._inside)


def _own_group(fabric: Fabric, groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
    """Make all of ``groups``, which don't overlap; the one that this rank is in."""
    made = [fabric.new_group(ranks) for ranks in groups]
    return next((group for group in made if group is not None), None)
