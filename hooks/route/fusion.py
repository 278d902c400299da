"""Hold back small buckets and reduce several in one go.

Every collective has a fixed cost; many small buckets pay it many times. Buckets come in the same
order on every rank, so every rank groups them alike: until enough bytes are together, or the
step's last bucket, or one of another kind has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.futures import Future

from trainmesh.hooks.executors.promise import Promise
from trainmesh.hooks.timing import Mark

__all__ = ["Bucket", "Fusion", "Reduce"]


@dataclass(frozen=True, eq=False)
class Bucket:
    """A dense bucket: a 1-D ``buffer``, the ``parameters`` whose gradients it holds one after the
    other, and its times."""

    buffer: torch.Tensor
    parameters: Sequence[torch.Tensor]
    mark: Mark


class Reduce(Protocol):
    """Sums a bucket over all ranks, in place."""

    def __call__(self, bucket: Bucket) -> Future[torch.Tensor]: ...


class Fusion:
    """Groups of at least ``fusion_bytes``, handed on to ``reduce``; 0 hands every bucket on."""

    def __init__(self, fusion_bytes: int, reduce: Reduce) -> None:
        self.fusion_bytes = fusion_bytes
        self._reduce = reduce
        self._held: list[tuple[Bucket, Promise]] = []
        self._held_bytes = 0
        self._buffers: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def take(self, bucket: Bucket, *, is_last: bool) -> Future[torch.Tensor]:
        """The future of this bucket's sum; it may complete only after later buckets came."""
        if not self._held and (is_last or bucket.buffer.nbytes >= self.fusion_bytes):
            return self._reduce(bucket)
        if self._held and self._held[0][0].buffer.dtype != bucket.buffer.dtype:
            self.flush()
        promise = Promise(bucket.buffer.device)
        self._held.append((bucket, promise))
        self._held_bytes += bucket.buffer.nbytes
        if is_last or self._held_bytes >= self.fusion_bytes:
            self.flush()
        return promise.future

    def restart(self) -> None:
        """Forget what is held back: its backward pass was given up, on all ranks at that bucket."""
        self._held, self._held_bytes = [], 0

    def flush(self) -> None:
        """Reduce what is held back."""
        held, self._held, self._held_bytes = self._held, [], 0
        if not held:
            return
        buckets = [bucket for bucket, _ in held]
        fused = self._buffer(buckets)
        torch.cat([bucket.buffer for bucket in buckets], out=fused)
        leader = buckets[0].mark
        for bucket in buckets:
            bucket.mark.leader = leader
        leader.start()
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters]
        done = self._reduce(Bucket(fused, parameters, leader))
        done.add_done_callback(lambda summed: _share_out(summed, held))

    def _buffer(self, buckets: Sequence[Bucket]) -> torch.Tensor:
        """A buffer for these; the same again in the next step, when it is free."""
        first = buckets[0]
        numel = sum(bucket.buffer.numel() for bucket in buckets)
        key = (first.mark.index, numel, first.buffer.dtype)
        if key not in self._buffers:
            # Other groups with this first bucket are not used any more: DDP has rebuilt them.
            self._buffers = {k: v for k, v in self._buffers.items() if k[0] != first.mark.index}
            self._buffers[key] = first.buffer.new_empty(numel)
        return self._buffers[key]


def _share_out(summed: Future[torch.Tensor], held: Sequence[tuple[Bucket, Promise]]) -> None:
    try:
        parts = torch.split(summed.value(), [bucket.buffer.numel() for bucket, _ in held])
    except RuntimeError as error:
        for _, promise in held:
            promise.break_(str(error))
        return
    for (bucket, promise), part in zip(held, parts, strict=True):
        promise.keep(bucket.buffer.copy_(part))
