"""What one rank does to prove an executor right."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.testing.plans import example_plan
from trainmesh.hooks.testing.spec import Failed, Spec, factory, is_place
from trainmesh.hooks.testing.tensors import digest, random, worst_error
from trainmesh.hooks.timing import Mark
from trainmesh.types import Algorithm, Plan

__all__ = ["check_executor_rank"]

ROUNDS = 2
"""All sizes once more: what a reduction leaves behind shows in the next."""
CYCLES = 3
"""More executors, one after the other: what each leaves behind counts as a leak."""
RELEASE_S = 5.0
"""Threads of closed groups may take a moment to end."""


def check_executor_rank(spec: Spec, store: Store) -> dict[str, str]:
    """Run all checks on this rank of the default group.

    Returns:
        Digests of all results, which must be the same on all ranks.

    Raises:
        Failed: a requirement is not met.
    """
    group_factory = _CountingFactory(dist.group.WORLD)
    plan = spec.plan or example_plan(spec.target, group_factory.world_size)
    make = factory(spec.target) if is_place(spec.target) else load(spec.target)
    digests = {}
    with _executor(make, plan, group_factory) as executor:
        _returns_at_once(executor, group_factory, store)
        for name in spec.dtypes:
            dtype = getattr(torch, name)
            for turn in range(ROUNDS):
                digests.update(_sums(executor, group_factory, spec.sizes, dtype, turn))
        if spec.target != Algorithm.NATIVE:  # what DDP itself would do uses the default group
            _keeps_to_its_own_groups(executor, group_factory)
    _releases_everything(make, plan, group_factory)
    return digests


class _CountingFactory(GroupFactory):
    """Knows which groups were made and not released."""

    def __init__(self, parent: dist.ProcessGroup | None) -> None:
        assert parent is not None  # noqa: S101 - the worker has just made it
        super().__init__(parent)
        self.held: list[dist.ProcessGroup] = []

    def new_group(
        self, ranks: Sequence[int], *, backend: str | None = None
    ) -> dist.ProcessGroup | None:
        group = super().new_group(ranks, backend=backend)
        if group is not None:
            self.held.append(group)
        return group

    def release(self, *groups: dist.ProcessGroup | None) -> None:
        super().release(*groups)
        self.held = [one for one in self.held if all(one is not group for group in groups)]


@contextmanager
def _executor(
    make: Callable[[Plan, GroupFactory], Executor], plan: Plan, group_factory: _CountingFactory
) -> Iterator[Executor]:
    executor = make(plan, group_factory)
    yield executor
    executor.close()
    if group_factory.held:
        raise Failed(f"close() leaves {len(group_factory.held)} process groups unreleased")


def _returns_at_once(executor: Executor, group_factory: GroupFactory, store: Store) -> None:
    """Rank 0 begins; the others do when it has returned."""
    buffer = torch.full((1000,), float(group_factory.rank + 1))
    mark = Mark(0, buffer.nbytes)
    key = f"begun by one of {group_factory.world_size}"
    if group_factory.rank:
        try:
            store.wait([key], timedelta(seconds=RELEASE_S))
        except RuntimeError:
            raise Failed(
                "reduce() of rank 0 does not return before its peers call theirs"
            ) from None
    future = executor.reduce(buffer, mark)
    if not group_factory.rank:
        store.set(key, "")
    result = future.wait()
    if result is not buffer and result.data_ptr() != buffer.data_ptr():
        raise Failed("the future does not hold the buffer that was given (reduce in place)")
    if not mark.end_ns:
        raise Failed("mark.end() was not called before the future completed")


def _keeps_to_its_own_groups(executor: Executor, group_factory: GroupFactory) -> None:
    """The default group is used at the same time, by half of the ranks before and by the others
    after: collectives that share a group would meet the wrong ones."""
    buffer = torch.full((1000,), float(group_factory.rank + 1))
    other = 1000 * buffer
    if group_factory.rank % 2:
        future = executor.reduce(buffer, Mark(0, buffer.nbytes))
        work = dist.all_reduce(other, async_op=True)
    else:
        work = dist.all_reduce(other, async_op=True)
        future = executor.reduce(buffer, Mark(0, buffer.nbytes))
    assert work is not None  # noqa: S101 - it is asynchronous
    work.wait()
    future.wait()
    exact = group_factory.world_size * (group_factory.world_size + 1) / 2
    if not (buffer < 2 * exact).all() or not (other > 500 * exact).all():
        raise Failed("it uses the job's default process group: another collective got mixed in")


def _sums(
    executor: Executor,
    group_factory: GroupFactory,
    sizes: Sequence[int],
    dtype: torch.dtype,
    turn: int,
) -> dict[str, str]:
    """Buckets of all sizes in flight at once."""
    cases = list(enumerate(sizes))
    buffers = [random(group_factory.rank, turn, place, numel, dtype) for place, numel in cases]
    marks = [Mark(place, buffer.nbytes) for place, buffer in enumerate(buffers)]
    futures = [executor.reduce(*each) for each in zip(buffers, marks, strict=True)]
    for future in futures:
        future.wait()
    digests = {}
    for (place, numel), buffer in zip(cases, buffers, strict=True):
        case = f"{group_factory.world_size} ranks, bucket {place} of {numel} elements, {dtype}"
        inputs = [random(r, turn, place, numel, dtype) for r in range(group_factory.world_size)]
        error = worst_error(buffer, inputs)
        if not error <= 1:
            raise Failed(f"{case}: wrong sum, its error is {error:.3g} times what rounding may do")
        digests[f"{case}, round {turn}"] = digest(buffer)
    return digests


def _releases_everything(
    make: Callable[[Plan, GroupFactory], Executor], plan: Plan, group_factory: _CountingFactory
) -> None:
    """Made and closed again and again, nothing piles up."""

    def cycle() -> None:
        with _executor(make, plan, group_factory) as executor:
            executor.reduce(torch.ones(1000), Mark(0, 4000)).wait()

    cycle()
    dist.barrier()
    sleep(0.1)
    before = _held()
    for _ in range(CYCLES):
        cycle()
    deadline = monotonic() + RELEASE_S
    while (left := _left_behind(before)) and monotonic() < deadline:
        gc.collect()  # what only waits for the garbage collector is no leak
        sleep(0.05)
    for what, count in left.items():
        raise Failed(
            f"close() leaves {what} behind: {count} more after {CYCLES} more executors were made "
            "and closed"
        )


def _left_behind(before: dict[str, int]) -> dict[str, int]:
    """What there is more of now, by at least one for each executor."""
    more = {what: count - before[what] for what, count in _held().items()}
    return {what: count for what, count in more.items() if count >= CYCLES}


def _held() -> dict[str, int]:
    return {
        "threads": threading.active_count(),
        "system threads": _entries("/proc/self/task"),
        "files or sockets": _entries("/proc/self/fd"),
    }


def _entries(folder: str) -> int:
    """0 where there is no such folder (not Linux)."""
    return len(os.listdir(folder)) if Path(folder).is_dir() else 0
