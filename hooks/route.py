"""What happens to a step's buckets: held back or not, compressed or not, summed by the plan.

A route is one hint carried out. The next one takes over what did not change, so that a new
fusion size or codec makes no new process groups.
"""

from __future__ import annotations

import torch
from torch.futures import Future

from trainmesh.errors import ConfigError, PlanError
from trainmesh.hooks.compressed import NO_CODEC, Compressed, check_codec
from trainmesh.hooks.executor import Executor, Fabric, load
from trainmesh.hooks.fusion import Bucket, Fusion
from trainmesh.hooks.native import NativeExecutor
from trainmesh.plans import check_shape
from trainmesh.types import Hint, Plan

__all__ = ["Route", "check"]


def check(hint: Hint, world_size: int) -> None:
    """Check that this rank could carry ``hint`` out.

    Raises:
        PlanError: it could not; the message says why.
    """
    check_shape(hint.plan, world_size)
    load(hint.plan.algorithm)
    try:
        check_codec(hint.codec)
    except ConfigError as error:
        raise PlanError(str(error)) from error


class Route:
    """Where buckets go under one hint."""

    def __init__(
        self, fabric: Fabric, plan: Plan | None, executor: Executor, compressed: Compressed | None
    ) -> None:
        self._fabric = fabric
        self._plan = plan
        self._executor = executor
        self._compressed = compressed
        self._codec = compressed.name if compressed else NO_CODEC
        self._fusion = Fusion(0, self._sum)

    @classmethod
    def native(cls, fabric: Fabric) -> Route:
        """Before the first hint: what DDP would do."""
        return cls(fabric, None, NativeExecutor(None, fabric), None)

    def following(self, hint: Hint) -> Route:
        """The route of ``hint``, which takes over what is as it was; all ranks call it together.

        Raises:
            PlanError, RuntimeError, ...: this rank can't; whatever was made is released.
        """
        executor = self._executor
        if hint.plan != self._plan:
            executor = load(hint.plan.algorithm)(hint.plan, self._fabric)
        compressed = self._compressed
        try:
            if hint.codec != self._codec:
                compressed = Compressed.make(hint.codec, self._fabric, self._compressed)
        except Exception:
            if executor is not self._executor:
                executor.close()
            raise
        route = Route(self._fabric, hint.plan, executor, compressed)
        route._fusion = Fusion(hint.fusion_bytes, route._sum)
        return route

    def take(self, bucket: Bucket, *, is_last: bool) -> Future[torch.Tensor]:
        """The future of this bucket's sum."""
        return self._fusion.take(bucket, is_last=is_last)

    def flush(self) -> None:
        """The step's last bucket goes another way."""
        self._fusion.flush()

    @property
    def needs_parameters(self) -> bool:
        """Whether buckets must say whose gradients they hold."""
        return self._compressed is not None

    def close(self, successor: Route | None) -> None:
        """Release what ``successor`` has not taken over; nothing is in flight."""
        if self._compressed is not None and (
            successor is None or successor._compressed is not self._compressed
        ):
            self._compressed.close()
        if successor is None or successor._executor is not self._executor:
            self._executor.close()

    def _sum(self, bucket: Bucket) -> Future[torch.Tensor]:
        if self._compressed is not None:
            return self._compressed.reduce(bucket, self._executor)
        return self._executor.reduce(bucket.buffer, bucket.mark)
