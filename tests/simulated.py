"""A job that is only computed: its links, plans, buckets and clocks, driving one Coordinator.

What a bucket takes is predicted from the links as they really are; the coordinator sees step
reports, notes and pair times only, as from ranks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from trainmesh.coordinator.coordinator import Coordinator
from trainmesh.coordinator.tuning.comm_config import CommConfig, grouped
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.topology.cost import plan_cost
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.measure.probing import rounds
from trainmesh.topology.request import LIVE
from trainmesh.types import (
    BucketTiming,
    Hello,
    Hint,
    Hop,
    NodeReport,
    Note,
    PairTime,
    Plan,
    RankReport,
    StepReport,
    Tree,
)

MB = 1_000_000
CADENCE = 16
TICK_S = 1.0


class SimulatedJob:
    """One rank on each of ``world`` nodes.

    Args:
        links: The real link graph of each step.
        declared: What the coordinator is told; None: nothing.
        sizes: Bytes of the buckets, in their order.
        backward_s, compute_s: Time in which the buckets become ready one after the other, and the
            rest of the step's computation.
        overhead_s: What each collective costs beside its bytes.
        factors: Measured / predicted time by algorithm, if not 1.
        ratios, coding_s_per_byte: Of codecs, by name.
        noise: Standard deviation of each bucket's time, as a share of it.
    """

    def __init__(
        self,
        links: Callable[[int], LinkGraph],
        declared: LinkGraph | None,
        *,
        sizes: Sequence[int] = (MB, 25 * MB, 25 * MB, 10 * MB),
        settings: Settings | None = None,
        backward_s: float = 0.1,
        compute_s: float = 0.1,
        overhead_s: float = 0.0,
        factors: Mapping[str, float] | None = None,
        ratios: Mapping[str, float] | None = None,
        coding_s_per_byte: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.links = links
        self.sizes = sizes
        self.world = links(0).world_size
        self.coordinator = Coordinator("job", settings or Settings(), declared)
        self.now_s = 1000.0
        self.number = 0
        self.epoch = 0
        self.comm_config = CommConfig.native(self.world)
        self.hints: list[Hint] = []
        self.plans: list[tuple[int, str]] = []
        """(step, configuration in words) of each change."""
        self.step_s: list[float] = []
        self.probes = 0
        self.probing_s = 0.0
        self._backward_s = backward_s
        self._compute_s = compute_s
        self._overhead_s = overhead_s
        self._factors = factors or {}
        self._ratios = ratios or {}
        self._coding_s_per_byte = coding_s_per_byte
        self._noise = noise
        self._chance = random.Random(1)
        self._due_s = self.now_s
        self._sequence = 0
        self.send(RankReport(hello=self.hello(rank)) for rank in range(self.world))

    def hello(self, rank: int, pid: int = 100) -> Hello:
        return Hello(
            rank=rank, local_rank=0, world_size=self.world, node_rank=rank, node=f"n{rank}",
            pid=pid + rank, clock=f"c{rank}", backend="gloo", device="cpu",
        )  # fmt: skip

    def send(self, reports: Iterable[RankReport]) -> None:
        self._sequence += 1
        sent = tuple(reports)
        report = NodeReport(node="n", sequence=self._sequence, reports=sent, dropped=0)
        self.coordinator.report(report, self.now_s)

    def train(self, until: int) -> None:
        """Run up to step ``until``."""
        while self.number < until:
            self._agree()
            self._step()
            if self.now_s >= self._due_s:
                self._due_s = self.now_s + TICK_S
                self._decide()

    def texts(self, kind: str | None = None) -> list[str]:
        events = self.coordinator.status(self.now_s).events
        return [event.text for event in events if kind in (None, event.kind)]

    def _decide(self) -> None:
        effects = self.coordinator.decide(self.now_s)
        if effects.hint is not None:
            self.hints.append(effects.hint)
            self.coordinator.hint_seen(effects.hint, self.now_s)

    def _agree(self) -> None:
        hint = self.hints[-1] if self.hints else None
        if hint is None or hint.epoch <= self.epoch or self.number % CADENCE:
            return
        if hint.effective_step > self.number:
            return
        self.epoch = hint.epoch
        new = CommConfig.of(hint)
        if new.words != self.comm_config.words:
            self.plans.append((self.number, new.words))
        self.comm_config = new
        self.send(
            RankReport(notes=(Note(
                kind="switched", rank=rank, text=hint.plan.algorithm, step=self.number,
                epoch=hint.epoch,
            ),))
            for rank in range(self.world)
        )  # fmt: skip
        if hint.probe_bytes:
            self._probe(hint)

    def _probe(self, hint: Hint) -> None:
        graph = self.links(self.number)
        names = [str(rank) for rank in range(self.world)]
        pairs = []
        self.probes += 1
        for turn, together in enumerate(rounds(names)):
            times = []
            for a, b in [(int(a), int(b)) for a, b in together]:
                for src, dst in ((a, b), (b, a)):
                    path = graph.path(src, dst)
                    slowest = min(link.cost.bandwidth_bytes_per_s for link in path)
                    latency_s = sum(link.cost.alpha_s for link in path) + 1e-4
                    transfer_s = latency_s + hint.probe_bytes / slowest * self._shake()
                    times.append(transfer_s)
                    pair = PairTime(
                        hint.epoch, turn, src, dst, hint.probe_bytes, transfer_s, latency_s
                    )
                    pairs.append((dst, pair))
            self.now_s += 1.25 * max(times)
            self.probing_s += 1.25 * max(times)
        self.send(
            RankReport(pairs=tuple(pair for to, pair in pairs if to == rank))
            for rank in range(self.world)
        )

    def _step(self) -> None:
        begin_s = self.now_s
        count = len(self.sizes)
        arrivals = [
            begin_s + self._compute_s + self._backward_s * (place + 1) / count
            for place in range(count)
        ]
        spans: list[tuple[float, float]] = [(0.0, 0.0)] * count
        free_s = 0.0
        for group in grouped(self.sizes, self.comm_config.fusion_bytes):
            arrived_s = arrivals[group[-1]]
            free_s = max(free_s, arrived_s) + self._collective_s(sum(self.sizes[i] for i in group))
            for place in group:
                spans[place] = (arrived_s, free_s)
        end_s = max(free_s, arrivals[-1])
        buckets = tuple(
            BucketTiming(
                place, self.sizes[place], *(round(1e9 * t) for t in (arrivals[place], *span))
            )
            for place, span in enumerate(spans)
        )
        report = (self.number, self.epoch, round(1e9 * begin_s), round(1e9 * end_s), 1.5, buckets)
        self.now_s = end_s
        self.step_s.append(end_s - begin_s)
        self.send(RankReport(steps=(StepReport(rank, 0, *report),)) for rank in range(self.world))
        self.number += 1

    def _collective_s(self, nbytes: int) -> float:
        plan, codec = _freed(self.comm_config.plan), self.comm_config.codec
        on_wire = max(1, round(nbytes / self._ratios.get(codec, 1.0)))
        coding_s = nbytes * self._coding_s_per_byte if codec != "none" else 0.0
        cost = plan_cost(plan, self.links(self.number), LIVE.message_s)
        moving_s = cost.predict(on_wire).time_s
        moving_s *= self._factors.get(plan.algorithm, 1.0) * self._shake()
        return self._overhead_s + coding_s + moving_s

    def _shake(self) -> float:
        return max(0.2, self._chance.gauss(1.0, self._noise)) if self._noise else 1.0


def _freed(plan: Plan) -> Plan:
    """Messages take the network's own way, whatever the planner thought."""
    trees = tuple(
        Tree(
            tree.root,
            tree.share,
            *(tuple(Hop(hop.src, hop.dst) for hop in hops) for hops in (tree.up, tree.down)),
        )
        for tree in plan.trees
    )
    return replace(plan, trees=trees)
