"""What codecs cost on this rank: measured for ``--compression auto``, and only then.

Once the buckets are as DDP has rebuilt them, the first rank of each node times every codec that
``auto`` may choose or advise, on random gradients with the shapes of the largest bucket, without
the network, on a thread beside the training: codecs too run beside it, on as many cores as it
leaves. The results go to the coordinator with the process's other reports, and again from time to
time, as an agent or a coordinator may have been started anew.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from math import prod
from time import monotonic

import torch

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs import Layouts, codec, measure_cost
from trainmesh.hooks.context import RankContext
from trainmesh.hooks.ending import PREFIX
from trainmesh.job_settings import AUTO
from trainmesh.plan.codec_cost import (
    ADVISED_CODEC,
    FIRST_CODEC,
    LATER_CODEC,
)
from trainmesh.types import CodecCost, Hello

__all__ = ["ENV_COMPRESSION", "CodingCosts", "sample", "times_codecs"]

ENV_COMPRESSION = "TRAINMESH_COMPRESSION"
SEEN_STEP = 3
"""The step whose buckets are looked at: DDP has rebuilt them, and the training has warmed up."""
MAX_SAMPLE_BYTES = 8 << 20
"""Larger than a core's cache, as buckets are, and all codecs are timed in some 0.3 s."""
REPEAT_S = 2.0
"""The coordinator may not know all ranks yet. The pause doubles each time, up to ``PAUSE_S``."""
PAUSE_S = 60.0
"""An agent that has been restarted hears it at most this late."""
END_S = 2.0
"""For the thread to finish the codec that it is timing."""

Shapes = Sequence[tuple[int, ...]]


def times_codecs(hello: Hello, number: int) -> bool:
    """Whether module ``number`` of this rank is the one on whose buckets codecs are timed."""
    is_auto = os.environ.get(ENV_COMPRESSION) == AUTO
    return is_auto and number == 0 and hello.local_rank == 0 and hello.world_size > 1


class CodingCosts:
    """Times codecs once, and notes the results."""

    def __init__(self, context: RankContext) -> None:
        self._context = context
        self._world_size = context.hello.world_size
        self._buckets: list[Shapes] = []
        self._dtype = torch.float32
        self._device = torch.device("cpu")
        self._costs: list[CodecCost] = []
        self._warnings: list[str] = []
        """Both are written by the thread until it has ended."""
        self._started = False
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._next_s = 0.0
        self._pause_s = REPEAT_S

    def see(self, step: int, parameters: Sequence[torch.Tensor], buffer: torch.Tensor) -> None:
        """A bucket of ``step``, with the gradients of ``parameters``, is ready."""
        if step < SEEN_STEP:
            return
        if step == SEEN_STEP:
            self._look_at(parameters, buffer)
        elif not self._started:
            self._start()
        elif monotonic() >= self._next_s and (self._thread is None or not self._thread.is_alive()):
            self._send(step)

    def close(self) -> None:
        """End the thread; it may still be within one codec."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(END_S)

    def _send(self, step: int) -> None:
        self._next_s = monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S)
        for text in self._warnings:
            self._context.note("warning", text, step=step)
        self._warnings = []
        if self._costs:
            self._context.reporter.codec_costs(self._costs)

    def _look_at(self, parameters: Sequence[torch.Tensor], buffer: torch.Tensor) -> None:
        if parameters and not buffer.is_sparse:
            layout = Layouts().of(parameters)
            self._buckets.append([one.shape for one in layout.slices])
            self._dtype, self._device = buffer.dtype, buffer.device

    def _start(self) -> None:
        if not self._buckets:  # sparse ones are never compressed
            self._started = True
            return
        if self._device.type == "cuda":
            # Here and now: it waits for the device, which would break a capture that begins later.
            if not torch.cuda.is_current_stream_capturing():
                self._started = True
                self._measure()
            return
        self._started = True
        self._thread = threading.Thread(target=self._measure, name=f"{PREFIX}costs", daemon=True)
        # A thread that is within torch when the interpreter ends would abort the process.
        atexit.register(self.close)
        self._thread.start()

    def _measure(self) -> None:
        for name in (FIRST_CODEC, LATER_CODEC, ADVISED_CODEC):
            if self._ending.is_set():
                return
            try:
                cost = self._cost(name)
            except ConfigError:  # not for a job of this size
                continue
            except Exception as error:  # it is only a recommendation: training goes on without
                self._warnings.append(f"codec {name} can't be timed: {error}")
            else:
                if cost.ratio >= 1:  # else it makes these buckets larger, and is no use
                    self._costs.append(cost)

    def _cost(self, name: str) -> CodecCost:
        itemsize = self._dtype.itemsize
        shapes = sample(max(self._buckets, key=_numel), MAX_SAMPLE_BYTES // itemsize)
        timed = measure_cost(name, shapes, self._dtype, self._device, self._world_size)
        made = codec(name, self._world_size)
        every = [made.wire_bytes(one, itemsize, self._world_size) for one in self._buckets]
        return CodecCost(
            name,
            encode_s_per_byte=max(0.0, timed.encode_s) / (itemsize * _numel(shapes)),
            decode_s_per_byte=max(0.0, timed.decode_s) / (itemsize * _numel(shapes)),
            num_collectives=made.num_exchanges,
            ratio=itemsize * sum(map(_numel, self._buckets)) / sum(every),
        )


def sample(shapes: Shapes, max_numel: int) -> list[tuple[int, ...]]:
    """The first of ``shapes`` with at most ``max_numel`` elements in all; the one that doesn't fit
    is cut to fewer rows."""
    taken: list[tuple[int, ...]] = []
    room = max_numel
    for shape in shapes:
        if prod(shape) > room:
            width = prod(shape[1:])
            rows = room // width
            cut = (rows, *shape[1:]) if rows else (1, room)
            return [*taken, cut] if room else taken
        taken.append(shape)
        room -= prod(shape)
    return taken


def _numel(shapes: Shapes) -> int:
    return sum(map(prod, shapes))
