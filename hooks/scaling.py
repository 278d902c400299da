"""Scale gradients exactly as DDP's reducer does without a hook.

Without a hook the C++ reducer multiplies by 1/divisor while it copies a gradient into its
bucket, or divides in place where the gradient already is a view of the bucket
(``gradient_as_bucket_view`` with gradients kept between steps). With a hook it does neither.
The two round differently unless the divisor is a power of two (reducer.cpp,
``mark_variable_ready_dense``), so both are done here, to stay bit for bit equal. With
``batched_grad_copy`` it divides whole buckets.
"""

from __future__ import annotations

import weakref

import torch
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel.distributed import DistributedDataParallel

__all__ = ["GradientScaling"]


class GradientScaling:
    """Scaling of one DDP module's buckets over ``world_size`` ranks."""

    def __init__(self, module: DistributedDataParallel, world_size: int) -> None:
        self._module = weakref.ref(module)
        self._world_size = world_size
        self._divisor = world_size
        self._is_batched = bool(getattr(module, "batched_grad_copy", False))
        self._storages: dict[int, int] = {}

    def note_gradients(self) -> None:
        """Note which gradients exist before the backward pass; only they can be bucket views."""
        module = self._module()
        if module is None or not module.gradient_as_bucket_view:
            return
        if _is_power_of_two(self._world_size):
            return
        self._storages = {
            id(parameter): parameter.grad.untyped_storage().data_ptr()
            for parameter in module.parameters()
            if parameter.grad is not None and not parameter.grad.is_sparse
        }

    def begin(self, active_ranks: int | None) -> None:
        """A step begins; ``active_ranks`` is what a ``Join`` context divides by, if it does."""
        self._divisor = active_ranks or self._world_size

    def apply(self, bucket: GradBucket, buffer: torch.Tensor) -> None:
        """Scale ``bucket``, whose ``buffer`` is given, in place."""
        if self._divisor == 1:
            return
        if self._is_batched and not buffer.is_sparse:
            buffer.div_(self._divisor)
            return
        reciprocal = 1.0 / self._divisor
        if not self._storages:
            buffer.mul_(reciprocal)
            return
        own = buffer.untyped_storage().data_ptr()
        for parameter, view in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if self._storages.get(id(parameter)) == own:
                view.div_(self._divisor)
            else:
                view.mul_(reciprocal)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
