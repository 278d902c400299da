"""A job whose nodes come and go, and whose store loses things, around one Coordinator.

One rank a node. A node's reports reach the coordinator in their order, late or never; ranks switch
as ``trainmesh.hooks.agreement`` has them: at every ``CADENCE`` steps, if all hold the same hint.
All that may not happen raises AssertionError when it does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from trainmesh.coordinator.coordinator import Coordinator
from trainmesh.coordinator.tuning.settings import Settings
from trainmesh.topology.graph import LinkGraph
from trainmesh.types import (
    BucketTiming,
    Hello,
    Hint,
    NodeReport,
    Note,
    PairTime,
    RankReport,
    StepReport,
)
from trainmesh.wire import hint_digest

CADENCE = 4
JOB = "job"
MB = 1_000_000
MS = 1_000_000


@dataclass
class Node:
    """An agent: the hint that it has last seen, and the reports that are under way."""

    name: str
    hint: Hint | None = None
    sequence: int = 0
    waiting: deque[NodeReport] = field(default_factory=deque)


@dataclass
class Rank:
    hello: Hello
    node: Node
    epoch: int = 0
    plan: tuple[int, int] = (0, 0)
    """Epoch and digest in force."""


class ElasticJob:
    """Args: ``loss``: share of the reports that never arrive; ``delay``: that wait for later."""

    def __init__(
        self, seed: int, settings: Settings, declared: LinkGraph | None = None, *,
        loss: float = 0.0, delay: float = 0.0,
    ) -> None:  # fmt: skip
        self.draw = random.Random(seed)
        self.loss, self.delay = loss, delay
        self._settings, self._declared = settings, declared
        self.now_s = 1000.0
        self.nodes: dict[str, Node] = {}
        self.ranks: list[Rank] = []
        self.step = 0
        self.world = 0
        self.stored: Hint | None = None
        self._seen_by_coordinator: Hint | None = None
        self.history: list[Hint] = []
        self.coordinator = Coordinator(JOB, settings, declared)

    def start(self, names: Sequence[str]) -> None:
        """All processes end; one is started on each of the named nodes."""
        self.world = self.draw.getrandbits(62) + 1
        self.step = 0
        self.ranks = []
        for rank, name in enumerate(names):
            node = self.nodes.setdefault(name, Node(name, self.stored))
            hello = Hello(
                rank=rank, local_rank=0, world_size=len(names), node_rank=rank, node=name,
                pid=self.draw.randrange(1, 99_999), clock=name, backend="gloo", device="cpu",
                world=self.world,
            )  # fmt: skip
            self.ranks.append(Rank(hello, node))

    def tick(self, steps: int = 6) -> None:
        """A second: ranks train, reports travel, the coordinator takes its turn."""
        for _ in range(steps):
            self._agree()
            self._train()
        self._deliver()
        if round(self.now_s) % 5 == 0:
            self.tell_coordinator()  # it looks again from time to time, as agents do
            for node in self.nodes.values():
                node.hint = self.stored or node.hint
        self.decide()
        self.now_s += 1.0

    def decide(self) -> None:
        """As the coordinator's process does: what isn't stored as expected is read again."""
        hint = self.coordinator.decide(self.now_s).hint
        if hint is None:
            return
        if self.stored is self._seen_by_coordinator:
            self.store(hint)
        else:
            self.tell_coordinator()

    def store(self, hint: Hint | None, *, heard: bool = True) -> None:
        """The key has a new value, or none; ``heard``: the coordinator's watch works."""
        self.stored = hint
        if hint is not None:
            self.history.append(hint)
            for node in self.nodes.values():
                node.hint = hint
        if heard:
            self.tell_coordinator()

    def tell_coordinator(self) -> None:
        self._seen_by_coordinator = self.stored
        self.coordinator.hint_seen(self.stored, self.now_s)

    def restart_coordinator(self) -> None:
        self.coordinator = Coordinator(JOB, self._settings, self._declared)
        self.tell_coordinator()

    def _agree(self) -> None:
        """One round of all ranks; a round of one rank is none."""
        if self.step % CADENCE or len(self.ranks) < 2:
            return
        held = [self._candidate(rank) for rank in self.ranks]
        digests = {(hint.epoch, hint_digest(hint)) if hint else (0, 0) for hint in held}
        hint = held[0]
        if len(digests) > 1 or hint is None:
            return
        for rank in self.ranks:
            assert hint.epoch > rank.epoch, "epochs only grow"
            rank.epoch, rank.plan = hint.epoch, next(iter(digests))
            note = Note(
                kind="switched", rank=rank.hello.rank, text="", step=self.step, epoch=hint.epoch
            )
            self._send(rank, RankReport(hello=rank.hello, notes=(note,)))
            if hint.probe_bytes:
                self._send(rank, RankReport(hello=rank.hello, pairs=self._pairs(rank, hint)))

    def _candidate(self, rank: Rank) -> Hint | None:
        hint = rank.node.hint
        if hint is None or hint.epoch <= rank.epoch or hint.effective_step > self.step:
            return None
        if (hint.job, hint.world) != (JOB, rank.hello.world):
            return None
        return hint if hint.plan.world_size == len(self.ranks) else None

    def _pairs(self, rank: Rank, hint: Hint) -> tuple[PairTime, ...]:
        own, size = rank.hello.rank, hint.probe_bytes
        return tuple(
            PairTime(hint.epoch, 0, other.hello.rank, own, size, 1e-3 + size / 1e9, 1e-4)
            for other in self.ranks
            if other is not rank
        )

    def _train(self) -> None:
        """Two buckets, the same every step."""
        begin = round(self.now_s * 1e9) + self.step * 30 * MS
        buckets = (
            BucketTiming(0, 10 * MB, begin, begin, begin + 6 * MS),
            BucketTiming(1, 5 * MB, begin, begin, begin + 9 * MS),
        )
        assert len({rank.plan for rank in self.ranks}) <= 1, "ranks run different plans"
        for rank in self.ranks:
            report = StepReport(
                rank.hello.rank, 0, self.step, rank.epoch, begin, begin + 30 * MS, 1.5, buckets
            )
            self._send(rank, RankReport(hello=rank.hello, steps=(report,)))
        self.step += 1

    def _send(self, rank: Rank, report: RankReport) -> None:
        node = rank.node
        node.sequence += 1
        if self.draw.random() >= self.loss:
            node.waiting.append(
                NodeReport(node=node.name, sequence=node.sequence, reports=(report,), dropped=0)
            )

    def _deliver(self) -> None:
        while full := [node for node in self.nodes.values() if node.waiting]:
            for node in full:
                if self.draw.random() < self.delay:
                    return
                self.coordinator.report(node.waiting.popleft(), self.now_s)

    # What may happen to it.

    def disturb(self) -> None:
        """One random mishap."""
        size = self.draw.choice([1, 2, 2, 3, 4])
        mishaps = [
            lambda: self.start(self.draw.sample("abcde", size)),
            lambda: self.start(sorted(rank.node.name for rank in self.ranks)),
            lambda: self.start(self.draw.sample(self._names(), len(self.ranks))),
            lambda: self.store(None),
            lambda: self.store(None, heard=False),
            self._lose_everything,
            lambda: self.store(self.draw.choice(self.history) if self.history else None),
            lambda: self.store(self._foreign()),
            self._stale_agent,
            self.restart_coordinator,
        ]
        self.draw.choice(mishaps)()

    def calm(self) -> None:
        """Nothing is lost or late any more."""
        self.loss = self.delay = 0.0

    def _names(self) -> list[str]:
        return [rank.node.name for rank in self.ranks]

    def _lose_everything(self) -> None:
        self.store(None, heard=False)
        self.restart_coordinator()

    def _stale_agent(self) -> None:
        if self.history:
            node = self.draw.choice(list(self.nodes.values()))
            node.hint = self.draw.choice(self.history)

    def _foreign(self) -> Hint | None:
        """What another start, or another job, has left."""
        if not self.history:
            return None
        hint = self.draw.choice(self.history)
        epoch = hint.epoch + self.draw.choice([0, 1, 1000])
        kinds: list[dict[str, int | str]] = [
            {"world": 1}, {"job": "another"}, {"effective_step": 10**5}
        ]  # fmt: skip
        changed = self.draw.choice(kinds)
        return replace(hint, epoch=epoch, **changed) if "effective_step" not in changed else (
            replace(hint, epoch=epoch, world=2, **changed)
        )  # fmt: skip
