"""Mixed and absurd reports never raise out of the coordinator, whatever their order."""

import random

import pytest
from msgspec import structs

from trainmesh.coordinator.coordinator import Coordinator
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.errors import WireError
from trainmesh.topology.graph import host_graph
from trainmesh.types import (
    MAX_INT,
    BucketTiming,
    CodecCost,
    Collective,
    Hello,
    NodeReport,
    Note,
    PairTime,
    RankReport,
    StepReport,
)
from trainmesh.wire import decode, encode

SEEDS = (1128, *range(120))
NUMBERS = (0, 0, 1, 1, 2, 3, 7, 10**6, 10**9, 10**12, MAX_INT)
SANE = Hello(
    rank=0,
    local_rank=0,
    world_size=1,
    node_rank=0,
    node="a",
    pid=1,
    clock="c",
    backend="gloo",
    device="cpu",
    world=7,
)
PLANS = (None, "native", "ring", "hierarchical", "forest", "tree")


class Reports:
    """Reports of several jobs that write into one place, and of nothing at all."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sizes = self.random.sample((1, 2, 3, 4, 6), 2)
        self.step = 0
        self.epoch = 0
        """Of the last hint."""

    def node_report(self) -> NodeReport:
        if self.random.random() < 0.4:
            return self.sane_report()
        reports = tuple(self.rank_report() for _ in range(self.random.randint(1, 6)))
        return NodeReport(node="n", sequence=1, reports=reports, dropped=self.number())

    def sane_report(self) -> NodeReport:
        """Some steps of all ranks of one of the jobs."""
        size, first = self.sizes[0], self.step + 2
        epoch = self.random.choice((0, self.epoch, self.epoch, 3))
        nodes = self.random.choice((("a",), ("a", "b"), ("a", "b", "c")))
        reports = []
        for rank in range(size):
            hello = structs.replace(
                SANE, rank=rank, local_rank=rank, world_size=size, node=nodes[rank % len(nodes)]
            )
            steps = tuple(self.sane_step(rank, step, epoch) for step in range(first, first + 30))
            notes = (Note(kind="switched", rank=rank, text="x", step=first, epoch=epoch),)
            pairs = tuple(self.pair() for _ in range(self.random.choice((0, 0, size))))
            reports.append(RankReport(hello=hello, steps=steps, notes=notes, pairs=pairs))
        self.step += 30
        return NodeReport(node="n", sequence=1, reports=tuple(reports), dropped=0)

    def sane_step(self, rank: int, step: int, epoch: int) -> StepReport:
        begin, ms = step * 10**8, 10**6
        buckets = tuple(
            BucketTiming(
                index,
                self.random.choice((10**4, 10**6)),
                begin + index * ms,
                begin + index * ms,
                begin + (20 + 20 * index + self.random.randint(0, 2)) * ms,
            )
            for index in range(2)
        )
        if step % 3:
            buckets = tuple(structs.replace(bucket, nbytes=10**6) for bucket in buckets)
        return StepReport(rank, 0, step, epoch, begin, begin + 100 * ms, 1.0, buckets)

    def rank_report(self) -> RankReport:
        pick = self.random.random
        return RankReport(
            hello=self.hello() if pick() < 0.7 else None,
            steps=tuple(self.step_report() for _ in range(self.random.randint(0, 8))),
            notes=tuple(self.note() for _ in range(pick() < 0.3)),
            pairs=tuple(self.pair() for _ in range(pick() < 0.3)),
            costs=tuple(self.cost() for _ in range(pick() < 0.1)),
            dropped=self.number(),
        )

    def number(self) -> int:
        return self.random.choice(NUMBERS)

    def rank(self) -> int:
        return self.random.choice((0, 0, 1, 1, 2, 3, 5, 9))

    def hello(self) -> Hello:
        replicas: tuple[int, ...] = ()
        if self.random.random() < 0.2:
            replicas = tuple(self.rank() for _ in range(self.random.randint(0, 3)))
        return Hello(
            rank=self.rank(),
            local_rank=self.rank(),
            world_size=self.random.choice(self.sizes),
            node_rank=0,
            node=self.random.choice(("a", "b", "c")),
            pid=self.random.choice((1, 2)),
            clock="c",
            backend=self.random.choice(("gloo", "gloo", "nccl", "x")),
            device="cpu",
            collective=self.random.choice((*[Collective.ALLREDUCE] * 5, *Collective)),
            replicas=replicas,
            world=self.random.choice((0, 7, 7, 8)),
        )

    def step_report(self) -> StepReport:
        self.step += self.random.choice((0, 1, 1))
        if self.random.random() < 0.8:
            begin, ms = self.step * 10**7, 10**6
            buckets = tuple(
                BucketTiming(index, 10**6, begin, begin + ms, begin + 3 * ms) for index in range(2)
            )
            epoch = self.random.choice((0, 0, 0, 1, 2))
            return StepReport(
                self.rank(), 0, self.step, epoch, begin, begin + 10 * ms, 1.0, buckets
            )
        buckets = tuple(
            BucketTiming(*(self.number() for _ in range(5)))
            for _ in range(self.random.randint(0, 3))
        )
        loss = self.random.choice((None, 1.0, float("nan"), float("inf")))
        rank, module = self.rank(), self.random.choice((0, 1))
        step, epoch, begin, end = (self.number() for _ in range(4))
        return StepReport(rank, module, step, epoch, begin, end, loss, buckets)

    def note(self) -> Note:
        kind = self.random.choice(("switched", "rejected", "mismatch", "warning", "?"))
        text = self.random.choice(("", "nan"))
        return Note(kind=kind, rank=self.rank(), text=text, step=self.number(), epoch=self.number())

    def cost(self) -> CodecCost:
        codec = self.random.choice(("", "bf16", "int8", "powersgd:4"))
        second = self.random.choice((-1.0, 0.0, 1e-9, 1e300))
        return CodecCost(codec, second, second, 1, self.random.choice((1, 2, 1e6)))

    def pair(self) -> PairTime:
        second = self.random.choice((0.0, 1e-9, 1e-3, 1e-2, 1.0, 1e300))
        epoch = self.random.choice((self.epoch, self.epoch, self.number()))
        return PairTime(
            epoch,
            self.random.choice((0, 1, self.number())),
            self.rank(),
            self.rank(),
            self.number() or 1,
            second,
            0.0,
        )


def passed_on(report: NodeReport) -> NodeReport | None:
    """As it reaches the coordinator; None where the wire format refuses it."""
    try:
        return decode(encode(report), NodeReport, what="report")
    except WireError:
        return None


@pytest.mark.parametrize("chunk", range(4))
def test_mixed_and_absurd_reports_never_raise(chunk: int) -> None:
    taken = planned = 0
    for seed in SEEDS[chunk::4]:
        reports = Reports(seed)
        choice = reports.random.choice
        settings = Settings(
            only=choice(PLANS),
            fusion_bytes=choice((None, 0, 10**6)),
            compression=choice(("none", "auto", "bf16", "int8", "powersgd:4")),
        )
        declared = host_graph({"a": [0, 1], "b": [2]}) if choice((True, False)) else None
        coordinator = Coordinator(f"seed-{seed}", settings, declared)
        now_s = 1e9
        for _ in range(40):
            now_s += choice((0.0, 0.5, 1.0, 5.0, 60.0, -3600.0))
            report = passed_on(reports.node_report())
            if report is not None:
                taken += 1
                coordinator.report(report, now_s)
            effects = coordinator.decide(now_s)
            if effects.hint is not None and choice((True, True, False)):
                planned += 1
                reports.epoch = effects.hint.epoch
                coordinator.hint_seen(effects.hint, now_s)
            encode(coordinator.status(now_s))
    assert taken > 600
    assert planned > 5
