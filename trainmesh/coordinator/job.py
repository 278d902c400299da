"""What the ranks of one job have reported: who they are, their newest steps, their switches."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from trainmesh.coordinator.measure import StepWindow, exposed_s
from trainmesh.coordinator.tuning.replicas import Replicas
from trainmesh.coordinator.worlds import WorldStart
from trainmesh.types import Hello, RankStatus, StepReport

__all__ = ["JobView"]


MAX_TIMED = 64
"""Agents send bucket times of some eight steps a second, and ranks' reports come within a second
or two of each other."""


class JobView:
    """Facts of one world; nothing is decided here."""

    def __init__(self, world: WorldStart | None = None) -> None:
        self.world = world
        """None until the ranks were complete once."""
        self.hellos: Mapping[int, Hello] = world.hellos if world is not None else {}
        self.replicas = Replicas.of(self.hellos)
        """Which ranks all-reduce with each other; known once all ranks are."""
        self.window = StepWindow(self.replicas.size if world is not None else 0)
        self.step = 0
        self.num_steps = 0
        """Of the main module."""
        self.step_time_s: float | None = None
        """Of the newest step."""
        self._latest: dict[int, StepReport] = {}
        self._newest_loss: tuple[int, float | None] = (0, None)
        """With its step."""
        self._timed: dict[int, dict[int, StepReport]] = {}
        """Reports with bucket times of the newest steps, by step and rank."""
        self._switched: dict[int, int] = {}
        self._mismatch = (-1, -1)
        """The newest step at which the ranks held several hints, and the newest epoch of these."""

    @property
    def world_size(self) -> int:
        """0 until the ranks were complete."""
        return self.world.size if self.world is not None else 0

    @property
    def expected_size(self) -> int:
        """The same as the ranks say that have introduced themselves; 0 if none has."""
        return max((hello.world_size for hello in self.hellos.values()), default=0)

    @property
    def backend(self) -> str:
        return next((hello.backend for hello in self.hellos.values()), "")

    @property
    def loss(self) -> float | None:
        """From the newest step in which it was recorded; of many short steps, only some record
        it."""
        return self._newest_loss[1]

    @property
    def nodes(self) -> dict[str, list[int]]:
        """The ranks of each node."""
        nodes: dict[str, list[int]] = {}
        for rank, hello in sorted(self.hellos.items()):
            nodes.setdefault(hello.node, []).append(rank)
        return nodes

    @property
    def placement(self) -> tuple[object, ...]:
        """What a plan is made for. If it is equal, the plan of one world suits another."""
        ranks = [(rank, hello.node, hello.replicas) for rank, hello in sorted(self.hellos.items())]
        return self.backend, tuple(ranks)

    def see_step(self, step: StepReport) -> None:
        if step.module or step.rank not in self.hellos:
            return
        if self.world is not None and step.rank in self.replicas.groups[0]:
            self.window.add(step)
        self._latest[step.rank] = step
        is_detailed = step.buckets or step.loss is not None  # else it is not known, or not finite
        if is_detailed and step.step >= self._newest_loss[0]:
            self._newest_loss = step.step, step.loss
        if step.buckets:
            self._timed.setdefault(step.step, {})[step.rank] = step
            while len(self._timed) > MAX_TIMED:
                del self._timed[min(self._timed)]
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

    def see_mismatch(self, step: int, epoch: int) -> bool:
        """Note that the ranks held several hints at ``step``, one of them of ``epoch``. Every rank
        reports this for the hint that it holds, once an epoch. True if it is new."""
        before_step, before_epoch = self._mismatch
        self._mismatch = max(step, before_step), max(epoch, before_epoch)
        return step > before_step and epoch > before_epoch

    def statuses(self) -> tuple[RankStatus, ...]:
        return tuple(self._status(rank) for rank in sorted(self.hellos))

    def exposed_share(self, epoch: int) -> float | None:
        """Median share of the last steps of ``epoch`` in which they waited for communication; None
        where none was measured, or where there is nobody to communicate with."""
        recent = self.window.of_epoch(epoch)[-32:] if self.replicas.size > 1 else []
        return median(step.exposed_share for step in recent) if recent else None

    def _status(self, rank: int) -> RankStatus:
        hello, latest = self.hellos[rank], self._latest.get(rank)
        return RankStatus(
            rank=rank,
            node=hello.node,
            pid=hello.pid,
            step=latest.step if latest else 0,
            epoch=latest.epoch if latest else 0,
            skew_s=self._skew_s(rank),
            exposed_share=self._exposed_share(rank),
        )

    def _exposed_share(self, rank: int) -> float | None:
        own = next(
            (g[rank] for _, g in sorted(self._timed.items(), reverse=True) if rank in g), None
        )
        if own is None or len(self.hellos) < 2:
            return None
        duration_s = (own.end_ns - own.begin_ns) / 1e9
        return exposed_s(own) / duration_s if duration_s else None

    def _skew_s(self, rank: int) -> float | None:
        """At the newest step that all ranks of its clock have timed."""
        on_clock = {r for r, h in self.hellos.items() if h.clock == self.hellos[rank].clock}
        if len(on_clock) < 2:
            return None
        for _, group in sorted(self._timed.items(), reverse=True):
            if on_clock <= group.keys():
                arrivals = {other: group[other].buckets[0].arrival_ns for other in on_clock}
                return (arrivals[rank] - min(arrivals.values())) / 1e9
        return None
