"""Collect a record's lines in bounded memory, whatever the length of the run. Pure.

Steps are kept per plan epoch. If they become too many, every second step of the longest epoch is
dropped (the same steps of every rank), so short epochs stay whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from trainmesh.types import (
    Asked,
    Choice,
    ClassFit,
    Event,
    Hello,
    Hint,
    LinkOrigin,
    Outcome,
    RecordLine,
    StepReport,
)

__all__ = ["MAX_EVENTS", "RunSample", "Start", "StepSample", "collect"]

MAX_TIMINGS = 200_000
"""In memory at a time; of longer runs a sample is taken."""
MAX_EVENTS = 1_000
"""The first and the last ones; what lies between is counted."""
MAX_EPOCHS = 1_000
"""Plans of a run that are shown; a job changes a handful of times."""
MAX_MODULES = 8
"""How many modules' steps are kept: a script trains one module, or a few side by side."""

Group = dict[int, StepReport]
"""Reports of one step by rank."""


@dataclass
class _EpochSteps:
    stride: int = 1
    weight: int = 0
    groups: dict[int, Group] = field(default_factory=dict)

    def thin(self) -> None:
        """Let every second step go."""
        self.stride *= 2
        self.groups = {step: g for step, g in self.groups.items() if step % self.stride == 0}
        self.weight = sum(map(_weight, (r for g in self.groups.values() for r in g.values())))


def _weight(report: StepReport) -> int:
    return 1 + len(report.buckets)


@dataclass
class StepSample:
    """Steps of one DDP module, at most ``max_timings`` reports and bucket times."""

    max_timings: int = MAX_TIMINGS
    _epochs: dict[int, _EpochSteps] = field(default_factory=dict)
    _weight: int = 0

    def add(self, report: StepReport) -> None:
        epoch = self._epochs.setdefault(report.epoch, _EpochSteps())
        if report.step % epoch.stride:
            return
        group = epoch.groups.setdefault(report.step, {})
        known = group.get(report.rank)
        added = _weight(report) - (_weight(known) if known is not None else 0)
        group[report.rank] = report
        epoch.weight += added
        self._weight += added
        while self._weight > self.max_timings:
            divisible = [epoch for epoch in self._epochs.values() if len(epoch.groups) > 1]
            if not divisible:
                return
            largest = max(divisible, key=lambda epoch: epoch.weight)
            self._weight -= largest.weight
            largest.thin()
            self._weight += largest.weight

    def groups(self) -> list[tuple[int, int, Group]]:
        """(step, epoch, reports by rank), in step order."""
        return sorted(
            (
                (step, number, group)
                for number, epoch in self._epochs.items()
                for step, group in epoch.groups.items()
            ),
            key=lambda item: item[:2],
        )


@dataclass
class ModuleSteps:
    """What one DDP module did."""

    number: int = 0
    """In the order in which the modules first communicated."""
    steps: StepSample = field(default_factory=StepSample)
    num_steps: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Recorded steps by rank."""
    span_ns: dict[int, tuple[int, int]] = field(default_factory=dict)
    """First begin and last end by rank."""
    last_step: int = 0

    @property
    def most_steps(self) -> int:
        """Of any rank."""
        return max(self.num_steps.values(), default=0)

    def add(self, report: StepReport) -> None:
        self.steps.add(report)
        self.num_steps[report.rank] += 1
        self.last_step = max(self.last_step, report.step)
        begin_ns, end_ns = self.span_ns.get(report.rank, (report.begin_ns, report.end_ns))
        self.span_ns[report.rank] = (min(begin_ns, report.begin_ns), max(end_ns, report.end_ns))


@dataclass
class Start:
    """One start of the job's processes."""

    hellos: dict[int, Hello] = field(default_factory=dict)
    num_modules: int = 0
    """DDP modules that were seen."""
    _modules: dict[int, ModuleSteps] = field(default_factory=lambda: {0: ModuleSteps()})
    _forgotten: set[int] = field(default_factory=set)

    @property
    def main(self) -> ModuleSteps:
        """The module that did the most steps; of equals the first."""
        return max(self._modules.values(), key=lambda module: (module.most_steps, -module.number))

    @property
    def first(self) -> ModuleSteps | None:
        """The module that plans are made for; None if it was dropped because others did many more
        steps."""
        return self._modules.get(0)

    def add(self, report: StepReport) -> None:
        self.num_modules = max(self.num_modules, report.module + 1)
        if report.module in self._forgotten:
            return
        module = self._modules.get(report.module)
        if module is None:
            module = self._modules[report.module] = ModuleSteps(report.module)
            self._forget_one()
        module.add(report)

    def _forget_one(self) -> None:
        """If there are too many modules, the one with the fewest steps is dropped, but never the
        newest."""
        if len(self._modules) > MAX_MODULES:
            *others, _ = self._modules.values()
            fewest = min(others, key=lambda module: (module.most_steps, -module.number))
            self._forgotten.add(fewest.number)
            del self._modules[fewest.number]


@dataclass
class RunSample:
    """What was collected from a record."""

    start: Start = field(default_factory=Start)
    """The last start of the processes that has steps, else the last one."""
    num_starts: int = 0
    hints: dict[int, Hint] = field(default_factory=dict)
    first_choice: Choice | None = None
    choice: Choice | None = None
    fits: dict[str, ClassFit] = field(default_factory=dict)
    graph: dict[str, object] | None = None
    origin: LinkOrigin = LinkOrigin.GIVEN
    """Of ``graph``."""
    origins: dict[int, LinkOrigin] = field(default_factory=dict)
    """By the version of a graph."""
    asked: tuple[Asked, ...] = ()
    outcome: Outcome | None = None
    events: list[Event] = field(default_factory=list)
    events_omitted: int = 0
    lines: int = 0


class _Collector:
    def __init__(self) -> None:
        self.sample = RunSample()
        self._newest = self.sample.start

    def add(self, line: RecordLine) -> None:
        sample = self.sample
        sample.lines += 1
        if line.step is not None:
            self._newest.add(line.step)
            sample.start = self._newest
        elif line.hello is not None:
            self._greet(line.hello)
        elif line.event is not None:
            self._log(line.event)
        elif line.hint is not None and len(sample.hints) < MAX_EPOCHS:
            sample.hints[line.hint.epoch] = line.hint
        else:
            self._keep_newest(line)

    def _keep_newest(self, line: RecordLine) -> None:
        sample = self.sample
        if line.choice is not None:
            sample.first_choice = sample.first_choice or line.choice
            sample.choice = line.choice
        elif line.fit is not None:
            sample.fits[line.fit.link_class] = line.fit
        elif line.graph is not None:
            self._see_graph(line.graph)
        elif line.links_from is not None:
            sample.origin = line.links_from
        elif line.asked is not None:
            sample.asked = line.asked
        elif line.outcome is not None:
            sample.outcome = line.outcome

    def _see_graph(self, graph: dict[str, object]) -> None:
        sample = self.sample
        sample.graph = graph
        if sample.origin is not LinkOrigin.BUCKETS:
            sample.fits = {}
        version = graph.get("graph_version")
        if isinstance(version, int) and len(sample.origins) < MAX_EPOCHS:
            sample.origins[version] = sample.origin

    def _greet(self, hello: Hello) -> None:
        """If a rank comes back as another process, all have been restarted."""
        if not _is_one_start(self._newest.hellos, hello):
            self._newest = Start()
        if not self._newest.hellos:
            self.sample.num_starts += 1
        self._newest.hellos[hello.rank] = hello
        if not self.sample.start.num_modules:
            self.sample.start = self._newest

    def _log(self, event: Event) -> None:
        """The first and the last events are kept."""
        events = self.sample.events
        events.append(event)
        if len(events) > MAX_EVENTS:
            del events[MAX_EVENTS // 2]
            self.sample.events_omitted += 1


def _is_one_start(known: Mapping[int, Hello], hello: Hello) -> bool:
    """Whether ``hello`` is of the same start of the processes as those that are known: of the same
    process, if that rank is known, and of no other world. Ranks may introduce themselves before
    they know the number of their world (0)."""
    before = known.get(hello.rank, hello)
    return replace(before, world=hello.world) == hello and all(
        other.world_size == hello.world_size
        and (other.world == hello.world or 0 in (other.world, hello.world))
        for other in known.values()
    )


def collect(lines: Iterable[RecordLine]) -> RunSample:
    """Read ``lines`` to the end."""
    collector = _Collector()
    for line in lines:
        collector.add(line)
    return collector.sample
