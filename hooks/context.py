"""The context that all DDP modules of one training process share: its identity, and its connection
to the agent."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

import torch.distributed as dist
from msgspec.structs import replace

from trainmesh.agent.rank import HintFile, NullReporter, Reporter, connect
from trainmesh.hooks.launched import TorchrunWorker, unmeasured_reason
from trainmesh.job_settings import CADENCE
from trainmesh.types import Collective, Hello, Hint, Note

__all__ = [
    "ENV_CADENCE",
    "ENV_JOB",
    "ENV_NODE",
    "RankContext",
    "say",
    "say_once",
]

ENV_JOB = "TRAINMESH_JOB"
ENV_NODE = "TRAINMESH_NODE"
ENV_CADENCE = "TRAINMESH_CADENCE"
ENV_WORKER = "TRAINMESH_WORKER"
"""torchrun's variables, as ``patch.install`` saw them in the worker that was launched."""
"""Steps between two rounds of agreement: rare enough not to show in the step time, and often enough
for a switch within seconds."""


class RankContext:
    """Made when the first DDP module communicates; lives as long as the process."""

    def __init__(
        self,
        device: str,
        backend: str,
        *,
        collective: Collective = Collective.ALLREDUCE,
        replicas: tuple[int, ...] = (),
    ) -> None:
        rank, worker = dist.get_rank(), TorchrunWorker.read()
        self.hello = Hello(
            rank=rank,
            # Spawned ranks inherit the variables of the process that spawned them.
            local_rank=_number("LOCAL_RANK", 0) if worker.rank == rank else rank,
            world_size=dist.get_world_size(),
            node_rank=_number("GROUP_RANK", 0),
            node=os.environ.get(ENV_NODE) or socket.gethostname(),
            pid=os.getpid(),
            clock=_boot_id(),
            backend=backend,
            device=device,
            restart=_number("TORCHELASTIC_RESTART_COUNT", 0),
            world=0 if dist.get_world_size() > 1 else secrets.randbits(62) + 1,
            collective=collective,
            replicas=replicas,
        )
        self.cadence = max(1, _number(ENV_CADENCE, CADENCE))
        self.job = os.environ.get(ENV_JOB, "")
        self.reporter, self._hints = self._connect(worker)
        self._newest: Hint | None = None
        self._split_epoch = 0
        self._complaint: str | None = None

    def join(self, world: int) -> None:
        """All ranks have drawn ``world`` together, the number of this start of the processes."""
        if not self.hello.world:
            self.hello = replace(self.hello, world=world)
            self.reporter.greet(self.hello)

    def _connect(self, worker: TorchrunWorker) -> tuple[Reporter, HintFile]:
        launched = TorchrunWorker.parse(os.environ.get(ENV_WORKER))
        reason = unmeasured_reason(launched, worker, self.hello.rank, self.hello.world_size)
        if reason is None:
            return connect(self.hello)
        if launched is not None and launched.rank == 0:
            say(f"this world of {self.hello.world_size} ranks is not measured: {reason}")
        return NullReporter(), HintFile(None)

    def newest_hint(self) -> Hint | None:
        """The newest valid hint for this job and this world that has reached this rank."""
        hint = self._hints.poll()
        if hint is not None and (hint.job, hint.world) == (self.job, self.hello.world):
            self._newest = hint
        if self._hints.error != self._complaint:
            self._complaint = self._hints.error
            if self._complaint:
                self.note("rejected", self._complaint)
        return self._newest

    def note_split(self, step: int) -> None:
        """Not every rank holds the hint that this one holds; noted once an epoch."""
        epoch = self._newest.epoch if self._newest is not None else 0
        if epoch and epoch != self._split_epoch:
            self._split_epoch = epoch
            text = "not every rank holds the same hint yet; the plan in force stays"
            self.note("mismatch", text, step=step, epoch=epoch)

    def note(self, kind: str, text: str, *, step: int = 0, epoch: int = 0) -> None:
        self.reporter.note(
            Note(kind=kind, rank=self.hello.rank, text=text[:4096], step=step, epoch=epoch)
        )


def say(text: str) -> None:
    """One line on stderr, from rank 0 only; never raises."""
    is_in_world = dist.is_available() and dist.is_initialized()
    is_rank_0 = (dist.get_rank() if is_in_world else TorchrunWorker.read().rank) == 0
    if is_rank_0 and sys.stderr is not None:
        try:
            print(f"trainmesh: {text}", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            pass  # closed, or nobody reads it: the script goes on


_said: set[str] = set()


def say_once(subject: str, text: str) -> None:
    """The first line about ``subject``, one of few fixed words."""
    if subject not in _said:
        _said.add(subject)
        say(text)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
