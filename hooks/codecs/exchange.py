"""The collectives that a codec may use, and their plain implementation by a process group."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch.futures import Future

__all__ = ["CodecCollectives", "GroupExchange", "LoneExchange"]


class CodecCollectives(Protocol):
    """Collectives over all ranks of the job, which all call them in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        """Sum the 1-D ``tensor`` over all ranks in place, alike bit for bit on all of them. Any
        dtype of float32, float64, float16, bfloat16, int8 and int32."""
        ...

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        """All ranks' ``tensor`` in rank order: a tensor of shape [world_size, *tensor.shape]."""
        ...


class GroupExchange:
    """By the collectives of ``group``."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank = group.rank()
        self.world_size = group.size()

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        return _first(self._group.allreduce([tensor]).get_future())

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        gathered = tensor.new_empty((self.world_size, *tensor.shape))
        work = self._group._allgather_base(gathered.view(-1), tensor.view(-1))
        return _after(work.get_future(), gathered)


class LoneExchange:
    """No network at all, as if all ranks had the same gradients: to time a codec."""

    def __init__(self, world_size: int) -> None:
        self.rank = 0
        self.world_size = world_size

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        return _done(tensor)

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        return _done(tensor.expand(self.world_size, *tensor.shape).contiguous())


def _first(future: Future[list[torch.Tensor]]) -> Future[torch.Tensor]:
    return future.then(lambda done: done.value()[0])


def _after(future: Future[list[torch.Tensor]], result: torch.Tensor) -> Future[torch.Tensor]:
    def finish(done: Future[list[torch.Tensor]]) -> torch.Tensor:
        done.value()  # raises what went wrong
        return result

    return future.then(finish)


def _done(tensor: torch.Tensor) -> Future[torch.Tensor]:
    future: Future[torch.Tensor] = Future(devices=[tensor.device]) if tensor.is_cuda else Future()
    future.set_result(tensor)
    return future
