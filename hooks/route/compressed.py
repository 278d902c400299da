"""Buckets on their way through a codec, one after the other on a thread.

A codec may need several collectives that wait for each other. On one thread they come in the
same order on every rank; and they never use the job's own group, on which the training script's
and DDP's collectives come in an order of their own.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import dataclass

import torch
from torch.futures import Future

from trainmesh.errors import PlanError
from trainmesh.hooks.codecs import Codec, ErrorFeedback, Gradient, GroupExchange, codec
from trainmesh.hooks.ending import PREFIX
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.native import NativeExecutor
from trainmesh.hooks.executors.promise import Promise
from trainmesh.hooks.timing import Mark
from trainmesh.job_settings import NO_CODEC

__all__ = ["NO_CODEC", "Compressed"]

END_S = 5.0
"""For its thread: after an error it may wait for a rank that is lost."""


@dataclass(frozen=True, eq=False)
class _Job:
    gradient: Gradient
    mark: Mark
    executor: Executor
    promise: Promise
    ready: torch.cuda.Event | None


class Compressed:
    """One codec in force. ``memory`` is the module's, and outlives it."""

    def __init__(self, name: str, group_factory: GroupFactory, memory: ErrorFeedback) -> None:
        """All ranks make it together.

        Raises:
            ConfigError: there is no such codec, or the job is too large for it.
        """
        self.name = name
        self._codec: Codec = codec(name, group_factory.world_size)
        self._memory = memory
        self._group_factory = group_factory
        group = group_factory.new_group(range(group_factory.world_size))
        if group is None:
            raise PlanError(f"codec {name}: no group")
        self._group = group
        self._plain = GroupExchange(group)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}codec", daemon=True)
        self._thread.start()

    def reduce(self, gradient: Gradient, mark: Mark, executor: Executor) -> Future[torch.Tensor]:
        """Sum ``gradient`` by ``executor``, compressed."""
        buffer = gradient.buffer
        ready = None
        if buffer.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        promise = Promise(buffer.device)
        self._jobs.put(_Job(gradient, mark, executor, promise, ready))
        return promise.future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(END_S)
        self._group_factory.release(self._group)

    def _run(self) -> None:
        streams: dict[torch.device, torch.cuda.Stream] = {}
        while (job := self._jobs.get()) is not None:
            device = job.gradient.buffer.device
            with contextlib.ExitStack() as stack:
                if job.ready is not None:
                    if device not in streams:
                        streams[device] = torch.cuda.Stream(device)
                    stack.enter_context(torch.cuda.stream(streams[device]))
                    streams[device].wait_event(job.ready)
                self._carry_out(job)

    def _carry_out(self, job: _Job) -> None:
        job.mark.start()
        try:
            exchange = _PlannedExchange(self._plain, job.executor)
            self._codec.reduce(job.gradient, exchange, self._memory)
        except Exception as error:  # a plug-in may fail in any way; the training script must know
            job.promise.break_(f"codec {self.name}: {error}")
            return
        job.mark.end()
        job.promise.keep(job.gradient.buffer)


class _PlannedExchange:
    """Sums by the plan in force, gathers by the codec's group."""

    def __init__(self, plain: GroupExchange, executor: Executor) -> None:
        self._plain = plain
        self._executor = executor
        self.rank = plain.rank
        self.world_size = plain.world_size

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        if isinstance(self._executor, NativeExecutor):  # it has the job's own group
            return self._plain.sum(tensor)
        return self._executor.reduce(tensor, Mark(0, tensor.nbytes))

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        return self._plain.gather(tensor)
