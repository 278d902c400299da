"""What the ranks of one job have said so far: who they are, their newest steps, their switches."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from trainmesh.decisions.replicas import Replicas
from trainmesh.measure import StepWindow, exposed_s
from trainmesh.types import Hello, RankStatus, StepReport
from trainmesh.worlds import World

__all__ = ["JobView"]


class JobView:
    """Facts of one world; nothing is decided here."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        """None until the ranks were complete once."""
        self.hellos: Mapping[int, Hello] = world.hellos if world is not None else {}
        self.replicas = Replicas.of(self.hellos)
        """Who all-reduces with whom, known when the ranks are complete."""
        self.window = StepWindow(self.replicas.size if world is not None else 0)
        self.step = 0
        self.num_steps = 0
        """Of the main module."""
        self.step_time_s = 0.0
        self._latest: dict[int, StepReport] = {}
        self._switched: dict[int, int] = {}

    @property
    def world_size(self) -> int:
        """0 until the ranks were complete."""
        return self.world.size if self.world is not None else 0

    @property
    def backend(self) -> str:
        return next((hello.backend for hello in self.hellos.values()), "")

    @property
    def loss(self) -> float | None:
        newest = max(self._latest.values(), key=lambda report: report.step, default=None)
        return newest.loss if newest else None

    @property
    def nodes(self) -> dict[str, list[int]]:
        """The ranks of each node."""
        nodes: dict[str, list[int]] = {}
        for rank, hello in sorted(self.hellos.items()):
            nodes.setdefault(hello.node, []).append(rank)
        return nodes

    @property
    def placement(self) -> tuple[object, ...]:
        """What a plan is made for: equal where the plan of one world suits another."""
        ranks = [(rank, hello.node, hello.replicas) for rank, hello in sorted(self.hellos.items())]
        return self.backend, tuple(ranks)

    def see_step(self, step: StepReport) -> None:
        if step.module or step.rank not in self.hellos:
            return
        if self.world is not None and step.rank in self.replicas.groups[0]:
            self.window.add(step)
        self._latest[step.rank] = step
        if step.step >= self.step:
            self.step = step.step
            self.num_steps = step.step + 1
            self.step_time_s = (step.end_ns - step.begin_ns) / 1e9

    def see_switch(self, rank: int, epoch: int) -> bool:
        """``rank`` runs ``epoch`` now. True if all ranks do."""
        if rank in self.hellos:
            self._switched[rank] = epoch
        same = list(self._switched.values()).count(epoch)
        return self.world is not None and same == self.world_size

    def statuses(self) -> tuple[RankStatus, ...]:
        return tuple(self._status(rank) for rank in sorted(self.hellos))

    def exposed_share(self, epoch: int) -> float:
        """Median share of the last steps of ``epoch`` in which they waited for communication."""
        recent = self.window.of_epoch(epoch)[-32:]
        return median(step.exposed_share for step in recent) if recent else 0.0

    def _status(self, rank: int) -> RankStatus:
        hello, latest = self.hellos[rank], self._latest.get(rank)
        duration_s = (latest.end_ns - latest.begin_ns) / 1e9 if latest else 0.0
        return RankStatus(
            rank=rank,
            node=hello.node,
            pid=hello.pid,
            step=latest.step if latest else 0,
            epoch=latest.epoch if latest else 0,
            skew_s=self._skew_s(rank),
            exposed_share=exposed_s(latest) / duration_s if latest and duration_s else 0.0,
        )

    def _skew_s(self, rank: int) -> float:
        """Lateness at the first bucket against the earliest rank on the same clock."""
        own = self._latest.get(rank)
        if own is None or not own.buckets:
            return 0.0
        on_clock = {r for r, h in self.hellos.items() if h.clock == self.hellos[rank].clock}
        arrivals = [
            other.buckets[0].arrival_ns
            for other_rank, other in self._latest.items()
            if other.step == own.step and other.buckets and other_rank in on_clock
        ]
        return max(0, own.buckets[0].arrival_ns - min(arrivals)) / 1e9
