"""What happens to a step's buckets: held back or not, compressed or not, summed by the plan.

A route is one hint carried out. The next one takes over what did not change, so that a new
fusion size or codec makes no new process groups for the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.futures import Future

from trainmesh.errors import ConfigError, PlanError
from trainmesh.hooks.codecs import ErrorFeedback, Gradient, Layouts, codec
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.native import NativeExecutor
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.route.compressed import NO_CODEC, Compressed
from trainmesh.hooks.route.fusion import Bucket, Fusion
from trainmesh.plan.shape import check_shape
from trainmesh.types import Hint, Plan

__all__ = ["BucketRoute", "check"]


def check(hint: Hint, world_size: int) -> None:
    """Check that this rank could carry ``hint`` out.

    Raises:
        PlanError: it could not; the message says why.
    """
    check_shape(hint.plan, world_size)
    load(hint.plan.algorithm)
    try:
        codec(hint.codec, world_size)
    except ConfigError as error:
        raise PlanError(str(error)) from error


@dataclass(frozen=True)
class _Kept:
    """What all routes of one module share."""

    group_factory: GroupFactory
    memory: ErrorFeedback = field(default_factory=ErrorFeedback)
    layouts: Layouts = field(default_factory=Layouts)


class BucketRoute:
    """Where buckets go under one hint."""

    def __init__(
        self,
        kept: _Kept,
        plan: Plan | None,
        executor: Executor,
        compressed: Compressed | None,
        fusion_bytes: int,
    ) -> None:
        self._kept = kept
        self._plan = plan
        self._executor = executor
        self._compressed = compressed
        self._fusion = Fusion(fusion_bytes, _Sum(kept, executor, compressed))

    @classmethod
    def native(cls, group_factory: GroupFactory) -> BucketRoute:
        """Before the first hint: what DDP would do."""
        return cls(_Kept(group_factory), None, NativeExecutor(None, group_factory), None, 0)

    def following(self, hint: Hint) -> BucketRoute:
        """The route of ``hint``, which takes over what is as it was; all ranks call it together.

        Raises:
            PlanError, RuntimeError, ...: this rank can't; whatever was made is released.
        """
        kept, executor, compressed = self._kept, self._executor, self._compressed
        if hint.plan != self._plan:
            executor = load(hint.plan.algorithm)(hint.plan, kept.group_factory)
        try:
            if hint.codec == NO_CODEC:
                compressed = None
            elif compressed is None or compressed.name != hint.codec:
                compressed = Compressed(hint.codec, kept.group_factory, kept.memory)
        except Exception:
            if executor is not self._executor:
                executor.close()
            raise
        return BucketRoute(kept, hint.plan, executor, compressed, hint.fusion_bytes)

    @property
    def is_native(self) -> bool:
        """Whether every bucket goes as it would without us: the backend's own all-reduce of it."""
        return (
            isinstance(self._executor, NativeExecutor)
            and self._compressed is None
            and self._kept.memory.empty
            and not self._fusion.fusion_bytes
        )

    @property
    def needs_parameters(self) -> bool:
        """Whether buckets must say whose gradients they hold."""
        return self._compressed is not None or not self._kept.memory.empty

    def take(self, bucket: Bucket, *, is_last: bool) -> Future[torch.Tensor]:
        """The future of this bucket's sum."""
        return self._fusion.take(bucket, is_last=is_last)

    def restart(self) -> None:
        """What a backward pass that was given up has held back is not wanted any more."""
        self._fusion.restart()

    def flush(self) -> None:
        """The step's last bucket goes another way."""
        self._fusion.flush()

    def close(self, other: BucketRoute | None = None) -> None:
        """Release what ``other`` does not have; nothing is in flight."""
        if self._compressed is not None and (
            other is None or other._compressed is not self._compressed
        ):
            self._compressed.close()
        if other is None or other._executor is not self._executor:
            self._executor.close()


@dataclass(frozen=True)
class _Sum:
    """What becomes of a bucket, or of several that are held back together. Not a method of the
    route: one that refers to itself would live, with its groups, until Python collects garbage."""

    kept: _Kept
    executor: Executor
    compressed: Compressed | None

    def __call__(self, bucket: Bucket) -> Future[torch.Tensor]:
        if not bucket.parameters:
            return self.executor.reduce(bucket.buffer, bucket.mark)
        gradient = Gradient(bucket.buffer, self.kept.layouts.of(bucket.parameters))
        if self.compressed is not None:
            return self.compressed.reduce(gradient, bucket.mark, self.executor)
        self.kept.memory.flush(gradient)
        return self.executor.reduce(bucket.buffer, bucket.mark)
