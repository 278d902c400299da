"""Carries out trees in rounds, for backends whose messages are ordered by streams (NCCL).

In round r a tree's hop carries piece r - d, where d is the number of hops that the piece has
behind it. A message then needs only what earlier rounds have brought, and a round's messages all
go at once, as one group of sends and receives: every rank takes its rounds in the same order, so
none waits for ever. All of a bucket's rounds are enqueued on a stream of our own without waiting
for the device; sums are added on that stream in a fixed order, the same in every run.

(NCCL fuses the messages of a group into one kernel, and a group that waits for a peer holds up
what follows on its communicator only: hence a process group of our own.)
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.futures import Future

from trainmesh.errors import PlanError
from trainmesh.hooks.ending import PREFIX
from trainmesh.hooks.executor import GroupFactory
from trainmesh.hooks.executors.promise import Promise
from trainmesh.hooks.executors.trees import cut, hops
from trainmesh.hooks.timing import Mark
from trainmesh.plan.schedule import trees
from trainmesh.types import Plan, Tree

__all__ = ["RoundOp", "RoundsExecutor", "rounds"]

MIN_PIECE_BYTES = 256 * 1024
"""A round costs some ten microseconds of kernel launches."""
MAX_PIECES = 16
"""Of a tree: a pipeline twice as deep would save less than it costs to enqueue."""
END_S = 5.0
"""For its thread: after an error it may wait for a rank that is lost."""


class RoundOp(NamedTuple):
    """One rank's message in a round. If ``receives``, ``peer`` sends the piece, which is added to
    the present value if ``adds``."""

    tree: int
    piece: int
    peer: int
    receives: bool
    adds: bool


def rounds(trees: Sequence[Tree], counts: Sequence[int], rank: int) -> Iterator[list[RoundOp]]:
    """The actions of ``rank``, round by round, without the rounds in which it does nothing.

    The messages between two ranks come in the same order on both.

    Args:
        counts: Number of pieces of each tree.
    """
    planned: dict[int, list[RoundOp]] = defaultdict(list)
    for number, (tree, count) in enumerate(zip(trees, counts, strict=True)):
        for src, dst, depth, is_up in hops(tree):
            if rank not in (src, dst):
                continue
            peer = src if dst == rank else dst
            for piece in range(count):
                op = RoundOp(number, piece, peer, dst == rank, is_up and dst == rank)
                planned[depth + piece].append(op)
    for turn in sorted(planned):
        yield planned[turn]


@dataclass(frozen=True, eq=False)
class _Job:
    buffer: torch.Tensor
    mark: Mark
    promise: Promise
    ready: torch.cuda.Event | None


@dataclass(frozen=True)
class _Program:
    """All rounds of a buffer of some size; ``first[tree]``: its first piece among ``sizes``."""

    sizes: list[int]
    first: list[int]
    rounds: list[list[RoundOp]]


class RoundsExecutor:
    """See the module. Buffers are tensors of any device and dtype that the backend can send."""

    MAX_PROGRAMS = 64

    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None:
        """All ranks make it together; NCCL connects them here, so that no bucket waits for it.

        Raises:
            PlanError: no group could be made.
        """
        self._group_factory = group_factory
        self._trees = trees(plan)
        group = group_factory.new_group(range(group_factory.world_size))
        if group is None:
            raise PlanError(f"{plan.algorithm}: no group")
        self._group = group
        if "nccl" in group_factory.backend:
            first = torch.zeros(1, device=torch.device("cuda", torch.cuda.current_device()))
            group.allreduce([first]).wait()
        self._programs: dict[tuple[int, int], _Program] = {}
        self._scratch: dict[tuple[torch.device, int], torch.Tensor] = {}
        self._error: str | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{PREFIX}rounds", daemon=True)
        self._thread.start()

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        ready = None
        if buffer.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        promise = Promise(buffer.device)
        self._jobs.put(_Job(buffer, mark, promise, ready))
        return promise.future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(END_S)
        self._scratch.clear()
        self._group_factory.release(self._group)

    def _run(self) -> None:
        streams: dict[torch.device, torch.cuda.Stream] = {}
        while (job := self._jobs.get()) is not None:
            device = job.buffer.device
            with contextlib.ExitStack() as stack:
                if job.ready is not None:
                    if device not in streams:
                        streams[device] = torch.cuda.Stream(device)
                    stack.enter_context(torch.cuda.stream(streams[device]))
                    streams[device].wait_event(job.ready)
                    job.buffer.record_stream(streams[device])
                self._carry_out(job)

    def _carry_out(self, job: _Job) -> None:
        if self._error is None:
            try:
                job.mark.start()
                self._sum(job.buffer)
            except RuntimeError as error:
                self._error = str(error).strip().partition("\n")[0]
        if self._error is not None:
            job.promise.break_(f"a bucket could not be summed: {self._error}")
            return
        job.mark.end()
        job.promise.keep(job.buffer)

    def _sum(self, buffer: torch.Tensor) -> None:
        program = self._program(buffer)
        pieces = torch.split(buffer, program.sizes)
        for ops in program.rounds:
            places = [pieces[program.first[op.tree] + op.piece] for op in ops]
            values = [
                self._room(number, place) if op.adds else place
                for number, (op, place) in enumerate(zip(ops, places, strict=True))
            ]
            self._exchange(ops, values, grouped=buffer.is_cuda)
            for op, place, value in zip(ops, places, values, strict=True):
                if op.adds:
                    place.add_(value)

    def _exchange(self, ops: list[RoundOp], values: list[torch.Tensor], *, grouped: bool) -> None:
        """All messages of a round. Those to receive are posted first: gloo sends only after the
        receiver's note."""
        group = self._group
        if grouped:
            group._start_coalescing(values[0].device)
        numbered = sorted(enumerate(ops), key=lambda item: not item[1].receives)
        works = [
            group.recv([values[number]], op.peer, op.tree)
            if op.receives
            else group.send([values[number]], op.peer, op.tree)
            for number, op in numbered
        ]
        if grouped:
            works = [group._end_coalescing(values[0].device)]
        for work in works:
            work.wait()

    def _room(self, number: int, like: torch.Tensor) -> torch.Tensor:
        """Scratch for a piece that will be added; free again in the next round."""
        key = (like.device, number)
        room = self._scratch.get(key)
        if room is None or room.numel() < like.nbytes:
            room = torch.empty(like.nbytes, dtype=torch.uint8, device=like.device)
            self._scratch[key] = room
        return room[: like.nbytes].view(like.dtype)

    def _program(self, buffer: torch.Tensor) -> _Program:
        key = (buffer.numel(), buffer.element_size())
        program = self._programs.get(key)
        if program is None:
            if len(self._programs) >= self.MAX_PROGRAMS:
                self._programs.clear()
            largest = max(tree.share for tree in self._trees) * buffer.nbytes
            piece_bytes = max(MIN_PIECE_BYTES, -(-largest // MAX_PIECES))
            piece_numel = max(1, int(piece_bytes // buffer.element_size()))
            sizes, first = cut(self._trees, buffer.numel(), piece_numel)
            counts = [b - a for a, b in zip(first, first[1:], strict=False)]
            planned = list(rounds(self._trees, counts, self._group_factory.rank))
            program = _Program(sizes, first, planned)
            self._programs[key] = program
        return program
