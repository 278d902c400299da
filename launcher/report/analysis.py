"""From a run's record to the numbers of its report. Pure: no clock, no file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, median

from msgspec.structs import replace

from trainmesh.coordinator.measure import FIRST_STEP, MeasuredStep, exposed_s, measure
from trainmesh.coordinator.tuning.asked import in_force, unmet
from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.coordinator.tuning.replan import executors_of
from trainmesh.coordinator.tuning.replicas import Replicas
from trainmesh.coordinator.tuning.settings import NO_CODEC
from trainmesh.launcher.report.analysis_types import (
    UNKNOWN,
    BucketStats,
    NodeRanks,
    PlanOutcome,
    RankSplit,
    RunAnalysis,
    SeriesPoint,
    Spread,
    SwitchEffect,
    TimeSplit,
)
from trainmesh.launcher.report.missing import Held, describe_missing
from trainmesh.launcher.report.run_sample import Group, RunSample
from trainmesh.launcher.report.skew import rank_skew
from trainmesh.topology.cost import busbw_bytes_per_s
from trainmesh.types import (
    Algorithm,
    Asked,
    Collective,
    Hello,
    Hint,
    LinkOrigin,
    Plan,
    StepReport,
)

__all__ = ["analyse", "split_of"]

MAX_POINTS = 4_000
"""Of a chart's steps in the report; above, every second one, every third, ..."""
SWITCH_WINDOW = 32
"""Steps on either side of a switch that are compared."""
Steps = Sequence[tuple[int, int, Group]]


def analyse(sample: RunSample, *, corrupt_lines: int = 0, num_known_steps: int = 0) -> RunAnalysis:
    """The numbers of what was collected from a record; ``corrupt_lines`` others were left out. Of
    the last start of the job ``num_known_steps`` are known to have been done, recorded or not."""
    start, main = sample.start, sample.start.main
    hellos = [start.hellos[rank] for rank in sorted(start.hellos)]
    clocks = {hello.rank: hello.clock for hello in hellos}
    nodes = {hello.rank: hello.node for hello in hellos}
    configs = _configs(sample)
    steps = [
        (step, configs.get(epoch, epoch), group)
        for step, epoch, group in main.steps.groups()
        if step >= FIRST_STEP
    ]
    world_size = max((hello.world_size for hello in hellos), default=0) or len(main.num_steps)
    complete = [item for item in steps if len(item[2]) == world_size]
    is_alone = world_size == 1 or Replicas.of(start.hellos).are_single
    if is_alone:
        steps = _without_buckets(steps)
        complete = steps
    reports = [report for _, _, group in steps for report in group.values()]
    times_s = [_step_time_s(group) for _, _, group in steps]
    plans = _plans(sample, steps, complete)
    num_steps = main.most_steps
    asked = _asked(sample, plans)
    return RunAnalysis(
        world_size=world_size,
        nodes=_nodes(nodes),
        backend=hellos[0].backend if hellos else "",
        device=hellos[0].device if hellos else "",
        job=next((hint.job for hint in sample.hints.values()), ""),
        num_starts=sample.num_starts,
        outcome=sample.outcome,
        num_modules=start.num_modules,
        module=main.number,
        num_steps=num_steps,
        num_known_steps=num_known_steps,
        last_step=main.last_step,
        duration_s=max((end - begin for begin, end in main.span_ns.values()), default=0) / 1e9,
        step_time=Spread.of(times_s) if times_s else None,
        split=split_of(reports),
        rank_splits=_rank_splits(reports),
        buckets=_bucket_stats(complete, start.hellos),
        skew=rank_skew([group for _, _, group in complete], clocks, nodes),
        num_clocks=len(set(clocks.values())),
        plans=plans,
        choice=sample.choice,
        asked=asked,
        unmet=unmet(asked, num_steps),
        fits=tuple(sample.fits.values()),
        graph=sample.graph,
        link_sources=_link_sources(sample.graph),
        measured_by=sample.origin,
        events=tuple(sample.events),
        events_omitted=sample.events_omitted,
        series=_series(steps),
        lines=sample.lines,
        corrupt_lines=corrupt_lines,
        missing=describe_missing(
            sample,
            Held(
                world_size=world_size,
                reports=reports,
                num_complete=len(complete),
                measured=[step for _, step in _measured(complete)],
                plans=plans,
                corrupt_lines=corrupt_lines,
                num_known_steps=num_known_steps,
            ),
        ),
    )


def _without_buckets(steps: Steps) -> list[tuple[int, int, Group]]:
    """A rank that all-reduces with nobody: what its buckets took is a part of its step."""
    return [
        (step, epoch, {rank: replace(report, buckets=()) for rank, report in group.items()})
        for step, epoch, group in steps
    ]


def split_of(reports: Sequence[StepReport]) -> TimeSplit | None:
    """Mean split of the reports that have bucket times; None if there are none."""
    parts = [_parts_s(report) for report in reports if report.buckets]
    if not parts:
        return None
    compute_s, hidden_s, exposed, rest_s = (mean(values) for values in zip(*parts, strict=True))
    return TimeSplit(
        compute_s=compute_s,
        hidden_s=hidden_s,
        exposed_s=exposed,
        rest_s=rest_s,
        num_samples=len(parts),
    )


def _parts_s(report: StepReport) -> tuple[float, float, float, float]:
    """Compute alone, communication behind compute, exposed communication, rest; the end of a
    CUDA bucket may lie after the next step's begin, then there is no rest."""
    ready_ns = max(bucket.arrival_ns for bucket in report.buckets)
    done_ns = max(ready_ns, *(bucket.end_ns for bucket in report.buckets))
    busy_ns = max(0, ready_ns - report.begin_ns)
    hidden_ns = min(busy_ns, _hidden_ns(report, ready_ns))
    rest_ns = max(0, report.end_ns - done_ns)
    return (busy_ns - hidden_ns) / 1e9, hidden_ns / 1e9, exposed_s(report), rest_ns / 1e9


def _hidden_ns(report: StepReport, ready_ns: int) -> int:
    """Time before ``ready_ns`` during which at least one bucket was being communicated."""
    covered_ns, until_ns = 0, 0
    for bucket in sorted(report.buckets, key=lambda bucket: bucket.start_ns):
        begin_ns, end_ns = max(bucket.start_ns, until_ns), min(bucket.end_ns, ready_ns)
        if end_ns > begin_ns:
            covered_ns += end_ns - begin_ns
            until_ns = end_ns
    return covered_ns


def _rank_splits(reports: Sequence[StepReport]) -> tuple[RankSplit, ...]:
    by_rank: dict[int, list[StepReport]] = defaultdict(list)
    for report in reports:
        by_rank[report.rank].append(report)
    found = ((rank, split_of(by_rank[rank])) for rank in sorted(by_rank))
    return tuple(RankSplit(rank=rank, split=split) for rank, split in found if split is not None)


def _step_time_s(group: Group) -> float:
    return median(report.end_ns - report.begin_ns for report in group.values()) / 1e9


def _measured(complete: Steps) -> list[tuple[Group, MeasuredStep]]:
    found = ((group, measure(list(group.values()))) for _, _, group in complete)
    return [(group, step) for group, step in found if step is not None]


def _configs(sample: RunSample) -> dict[int, int]:
    """For each epoch, the first of those in a row that did the same: a probe of the links has an
    epoch of its own, and changes nothing."""
    configs = {0: 0}
    before: tuple[object, ...] = (Algorithm.NATIVE, 0, "none")
    first = 0
    for epoch, hint in sorted(sample.hints.items()):
        is_native = hint.plan.algorithm == Algorithm.NATIVE
        what = Algorithm.NATIVE if is_native else hint.plan
        now = (what, hint.fusion_bytes, hint.codec)
        if now != before:
            before, first = now, epoch
        configs[epoch] = first
    return configs


def _bucket_stats(complete: Steps, hellos: Mapping[int, Hello]) -> tuple[BucketStats, ...]:
    """Of the ranks that reduce with the first one."""
    members = Replicas.of(hellos).groups[0]
    collective = next((hello.collective for hello in hellos.values()), Collective.ALLREDUCE)
    samples: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for _, epoch, group in complete:
        reports = [report for rank, report in group.items() if rank in members]
        step = measure(reports) if reports else None
        if step is None:
            continue
        buckets = next(iter(group.values())).buckets
        for bucket, (nbytes, transfer_s) in zip(buckets, step.transfers, strict=True):
            samples[epoch, bucket.index, nbytes].append(transfer_s)
    stats = []
    for (epoch, index, nbytes), values in sorted(samples.items()):
        transfer_s = median(values)
        timed = transfer_s > 0
        stats.append(
            BucketStats(
                epoch=epoch,
                index=index,
                nbytes=nbytes,
                transfer_s=transfer_s,
                algbw_bytes_per_s=nbytes / transfer_s if timed else 0.0,
                busbw_bytes_per_s=busbw_bytes_per_s(nbytes, transfer_s, len(members), collective)
                if timed
                else 0.0,
                num_samples=len(values),
            )
        )
    return tuple(stats)


def _plans(sample: RunSample, steps: Steps, complete: Steps) -> tuple[PlanOutcome, ...]:
    outcomes: list[PlanOutcome] = []
    before: list[MeasuredStep] = []
    for epoch in sorted({epoch for _, epoch, _ in steps}):
        own = [item for item in steps if item[1] == epoch]
        measured = [step for _, step in _measured([i for i in complete if i[1] == epoch])]
        effect = _switch_effect(before, measured) if before and measured else None
        outcomes.append(_outcome(epoch, sample, own, measured, effect))
        before = measured
    return _without_refuted_bounds(outcomes)


def _without_refuted_bounds(outcomes: Sequence[PlanOutcome]) -> tuple[PlanOutcome, ...]:
    """If one plan beats a bound, the link graph has links slower than they are, so no bound of that
    graph holds, for any plan."""
    graphs = {each.plan.graph_version for each in outcomes if each.plan and each.exceeds_bound}
    return tuple(
        replace(each, is_bound_refuted=True, measured_efficiency=None)
        if each.plan is not None and each.plan.graph_version in graphs
        else each
        for each in outcomes
    )


def _switch_effect(before: list[MeasuredStep], after: list[MeasuredStep]) -> SwitchEffect:
    before, after = before[-SWITCH_WINDOW:], after[:SWITCH_WINDOW]
    return SwitchEffect(
        num_before=len(before),
        num_after=len(after),
        transfer_before_s=median(step.transfer_s for step in before),
        transfer_after_s=median(step.transfer_s for step in after),
        step_before_s=median(step.step_time_s for step in before),
        step_after_s=median(step.step_time_s for step in after),
    )


def _asked(sample: RunSample, plans: Sequence[PlanOutcome]) -> tuple[Asked, ...]:
    """Steps are evidence of it too, because a record may end before its last message."""
    asked = sample.asked
    for outcome in plans:
        if outcome.epoch in sample.hints:
            comm_config = CommConfig.of(sample.hints[outcome.epoch])
            asked = in_force(asked, comm_config, outcome.first_step)
    return asked


def _predicted(sample: RunSample, hint: Hint | None, algorithm: str) -> Plan | None:
    """The prediction for a hint's plan. Native has none of its own if it was not chosen among
    others; then it is what the first choice predicted for native, uncompressed. None if the
    prediction for native is of something that the backend does not run."""
    is_native = algorithm == Algorithm.NATIVE
    backends = {hello.backend for hello in sample.start.hellos.values()}
    if is_native and not all(executors_of(b, asked=True).native_is_ring for b in backends):
        return None
    if hint is not None and hint.plan.predicted_s:
        return hint.plan
    if not is_native or sample.first_choice is None:
        return None
    plans = sample.first_choice.candidates
    return next((plan for plan in plans if plan.algorithm == Algorithm.NATIVE), None)


def _outcome(
    epoch: int,
    sample: RunSample,
    steps: Steps,
    measured: Sequence[MeasuredStep],
    effect: SwitchEffect | None,
) -> PlanOutcome:
    hint = sample.hints.get(epoch)
    unknown = UNKNOWN if epoch else Algorithm.NATIVE.value
    algorithm = hint.plan.algorithm if hint is not None else unknown
    fusion_bytes, codec = (hint.fusion_bytes, hint.codec) if hint is not None else (0, NO_CODEC)
    plan = _predicted(sample, hint, algorithm)
    step_time_s = median(_step_time_s(group) for _, _, group in steps)
    step_transfer_s = median(step.transfer_s for step in measured) if measured else None
    of_size = [
        seconds
        for step in measured
        for nbytes, seconds in (step.services if fusion_bytes else step.transfers)
        if plan is not None and nbytes == plan.nbytes and codec == NO_CODEC
    ]
    measured_s = median(of_size) if of_size else None
    exceeds_bound = plan is not None and measured_s is not None and measured_s < plan.bound_s
    if plan is not None and (hint is None or plan is not hint.plan) and measured_s is None:
        plan = None  # it was predicted for other bytes than these
    return PlanOutcome(
        epoch=epoch,
        algorithm=algorithm,
        fusion_bytes=fusion_bytes,
        codec=codec,
        plan=plan,
        first_step=steps[0][0],
        last_step=steps[-1][0],
        num_samples=len(steps),
        step_time_s=step_time_s,
        split=split_of([report for _, _, group in steps for report in group.values()]),
        step_transfer_s=step_transfer_s,
        measured_s=measured_s,
        measured_efficiency=plan.bound_s / measured_s if plan and measured_s else None,
        exceeds_bound=exceeds_bound,
        origin=sample.origins.get(plan.graph_version, LinkOrigin.GIVEN)
        if plan is not None
        else LinkOrigin.GIVEN,
        switch=effect,
    )


def _series(steps: Steps) -> tuple[SeriesPoint, ...]:
    stride = 1 + len(steps) // MAX_POINTS
    return tuple(
        SeriesPoint(step, epoch, _step_time_s(group), _loss(group))
        for step, epoch, group in steps[::stride]
    )


def _loss(group: Group) -> float | None:
    losses = [report.loss for report in group.values() if report.loss is not None]
    return mean(losses) if losses else None


def _nodes(nodes: Mapping[int, str]) -> tuple[NodeRanks, ...]:
    by_node: dict[str, list[int]] = defaultdict(list)
    for rank, node in nodes.items():
        by_node[node].append(rank)
    return tuple(NodeRanks(node=node, ranks=tuple(ranks)) for node, ranks in by_node.items())


def _link_sources(graph: Mapping[str, object] | None) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    links = graph.get("links") if graph is not None else None
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict):
            counts[str(link.get("source", "declared"))] += 1
    return dict(counts)
