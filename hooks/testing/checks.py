"""The two checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple

import torch

from trainmesh.errors import ConfigError
from trainmesh.hooks.testing.ranks import run
from trainmesh.hooks.testing.spec import Spec, target_of
from trainmesh.types import Plan

__all__ = ["CheckReport", "check_codec", "check_executor"]

WORLD_SIZES = (2, 3, 4)
"""A pair, an odd number, and the least number with two islands."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
EXECUTOR_SIZES = (1, 2, 3, 5, 127, 1_000, 4_099, 65_537, 300_007)
"""Elements: fewer than ranks, around powers of two, and several pieces of a pipeline."""
CODEC_SIZES = (1, 3, 257, 4_099)
"""Elements: fewer than a block of any codec, and a few more than 256 and 4 096."""
STEPS = 64
"""Enough for error feedback to have sent what it owes."""


class CheckReport(NamedTuple):
    """A check that was passed: on what, how many results were compared, and how long it took."""

    target: str
    world_sizes: tuple[int, ...]
    num_results: int
    seconds: float


def check_executor(
    executor: str | Callable[..., Any],
    plan: Plan | None = None,
    *,
    world_sizes: Sequence[int] = WORLD_SIZES,
    dtypes: Sequence[torch.dtype] = DTYPES,
    sizes: Sequence[int] = EXECUTOR_SIZES,
    timeout_s: float = 20.0,
) -> CheckReport:
    """Check an executor against what ``trainmesh.hooks.executor`` asks of it.

    Sums are right against float64 and the same bit for bit on all ranks, with buckets of all
    ``sizes`` in flight at once; ``reduce`` returns at once, works in place and ends its mark; the
    job's default group is not used; ``close`` releases groups, threads and sockets.

    Args:
        executor: a registered name, the class (or function) itself, ``package.module:Class`` or
            ``path/file.py:Class``.
        plan: what it carries out; its world size is the one that is checked. Without it,
            ``example_plan``.
        timeout_s: of the process groups.

    Raises:
        AssertionError: it fails one of these; the message says which, where and on which rank.
        ConfigError: the arguments can't be used.
    """
    if plan is not None:
        world_sizes = (plan.world_size,)
    spec = Spec(
        kind="executor",
        target=target_of(executor),
        plan=plan,
        world_sizes=_checked(world_sizes),
        dtypes=_names(dtypes),
        sizes=tuple(sizes),
        timeout_s=timeout_s,
    )
    return _report(spec)


def check_codec(
    codec: str | Callable[..., Any],
    options: str = "",
    *,
    world_sizes: Sequence[int] = WORLD_SIZES,
    dtypes: Sequence[torch.dtype] = DTYPES,
    sizes: Sequence[int] = CODEC_SIZES,
    steps: int = STEPS,
    tolerance: float = 0.01,
    timeout_s: float = 20.0,
) -> CheckReport:
    """Check a codec against what ``trainmesh.hooks.codecs.Codec`` asks of it.

    Results are the same bit for bit on all ranks; what went in over ``steps`` steps comes out or
    is in the memory, but for ``tolerance`` of it, and what is in the memory does not pile up, also
    when the same parameters come in other buckets; a NaN or infinity reaches all ranks and leaves
    nothing behind; ``wire_bytes`` and ``num_exchanges`` are true.

    Args:
        codec: a registered name, the class (or function) itself, ``package.module:Class`` or
            ``path/file.py:Class``.
        options: what follows the colon in ``name:options``.
        steps: enough for every element to be sent a few times (topk:0.01 needs 1 000).

    Raises:
        AssertionError: it fails one of these; the message says which, where and on which rank.
        ConfigError: the arguments can't be used.
    """
    spec = Spec(
        kind="codec",
        target=target_of(codec),
        options=options,
        world_sizes=_checked(world_sizes),
        dtypes=_names(dtypes),
        sizes=tuple(sizes),
        steps=steps,
        tolerance=tolerance,
        timeout_s=timeout_s,
    )
    return _report(spec)


def _report(spec: Spec) -> CheckReport:
    begin = monotonic()
    # Each world size may come to one time-out of its groups, and needs some time itself.
    num_results = run(spec, limit_s=len(spec.world_sizes) * (spec.timeout_s + 60))
    return CheckReport(spec.target, spec.world_sizes, num_results, monotonic() - begin)


def _checked(world_sizes: Sequence[int]) -> tuple[int, ...]:
    if not world_sizes or not all(2 <= size <= 16 for size in world_sizes):
        raise ConfigError(f"world sizes must be 2 to 16, got {tuple(world_sizes)}")
    return tuple(world_sizes)


def _names(dtypes: Sequence[torch.dtype]) -> tuple[str, ...]:
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)
