"""``report.html``: one file, no scripts, nothing loaded from elsewhere; light and dark.

Everything that comes from a record passes through ``escape`` exactly once, in the function that
puts it into a tag.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

from trainmesh.coordinator.tuning.replan import executors_of
from trainmesh.errors import GraphError
from trainmesh.launcher.report import charts
from trainmesh.launcher.report.analysis_types import (
    BucketStats,
    PlanOutcome,
    RunAnalysis,
    TimeSplit,
    describe_measured_efficiency,
    describe_predicted_efficiency,
)
from trainmesh.launcher.report.charts import Bar, BarPart
from trainmesh.launcher.report.findings import Headline
from trainmesh.topology.document import load
from trainmesh.topology.explain import candidate_name
from trainmesh.topology.render import svg
from trainmesh.types import Choice, Plan
from trainmesh.units import count, duration, percent, rate, size

__all__ = ["page"]

MAX_ROWS = 64
"""Of a table that people read; the JSON has all."""
MAX_EVENT_ROWS = 400
"""Of tables that are folded away at first."""
PARTS = (
    ("compute", "forward and backward", "compute_s"),
    ("hidden", "the same, with communication hidden behind it", "hidden_s"),
    ("exposed", "waiting for communication", "exposed_s"),
    ("rest", "optimizer, data, the rest", "rest_s"),
)
TERMS = {
    "algbw, busbw": "Bytes of a bucket / its transfer time; busbw is algbw * 2 (N - 1) / N as in "
    "nccl-tests, which makes rings of any number of ranks N comparable.",
    "bound, efficiency": "The bound is the least time that any algorithm needs on the link graph; "
    "efficiency is bound / time.",
    "epoch": "Numbers the plans of a run; epoch 0 is the backend's own all-reduce.",
    "predicted, measured": "Predicted times follow from the link graph. Measured times were taken "
    "in this run, by every rank for every bucket.",
    "transfer": "Time of one bucket on the rank that was ready last: it waits for nobody, so late "
    "ranks don't count. Medians over steps.",
}


def page(run: RunAnalysis, headline: Headline) -> str:
    """The whole document."""
    body = "\n".join(section for section in _sections(run, headline) if section)
    title = escape(f"trainmesh report {run.job}".strip())
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=title, body=body)


def _sections(run: RunAnalysis, headline: Headline) -> Iterator[str]:
    yield _header(run)
    yield _verdict(headline)
    yield _tiles(run)
    yield _section("What is missing", _list(run.missing)) if run.missing else ""
    yield _time(run)
    yield _steps(run)
    yield _plans(run)
    yield _topology(run)
    yield _buckets(run)
    yield _skew(run)
    yield _events(run)
    terms = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in TERMS.items())
    yield _section("Words used here", f"<dl>{terms}</dl>")


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _note(*texts: str) -> str:
    return "".join(f'<p class="soft">{escape(text)}</p>' for text in texts)


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kinds: str) -> str:
    """``kinds`` has a letter for each column: t (text), n (number) or w (wide text)."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{'' if kind == 't' else f' class={kind}'}>{escape(text)}</{tag}>"
            for text, kind in zip(texts, kinds, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _details(summary: str, *parts: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def _header(run: RunAnalysis) -> str:
    facts = []
    if run.world_size:
        facts.append(f"{count(run.world_size, 'rank')} on {_nodes(run)}")
    facts += [fact for fact in (run.backend, run.device) if fact]
    facts.append(f"{count(run.num_steps, 'step')} in {duration(run.duration_s)}")
    if run.num_modules > 1:
        facts.append(f"DDP module {run.module + 1} of {run.num_modules}")
    name = escape(f"trainmesh · {run.job}" if run.job else "trainmesh")
    return f'<header><b>{name}</b><span class="soft">{escape(" · ".join(facts))}</span></header>'


def _nodes(run: RunAnalysis) -> str:
    return run.nodes[0].node if len(run.nodes) == 1 else count(len(run.nodes), "node")


def _verdict(headline: Headline) -> str:
    return (
        f'<section class="verdict {escape(headline.tone)}"><h1>{escape(headline.title)}</h1>'
        f'{_list(headline.points) if headline.points else ""}<p class="advice"><b>What to do next.'
        f"</b> {escape(headline.advice)}</p></section>"
    )


def _tiles(run: RunAnalysis) -> str:
    if run.step_time is None:
        return ""
    last = run.plans[-1]
    tiles = [
        ("step time, median", duration(run.step_time.median_s)),
        ("waiting for communication", percent(run.split.exposed_share) if run.split else "-"),
        ("plan at the end", last.name),
        ("measured efficiency", describe_measured_efficiency(last)),
    ]
    if run.world_size == 1:
        tiles = tiles[:1]
    inner = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _time(run: RunAnalysis) -> str:
    if run.split is None:
        return ""
    plans = [
        (_plan_name(plan), plan.split)
        for plan in run.plans[-MAX_ROWS:]
        if plan.split is not None and len(run.plans) > 1
    ]
    ranks = [(f"rank {item.rank}", item.split) for item in run.rank_splits]
    shown = ranks[:MAX_ROWS]
    key = "".join(f'<span><i class="{kind}"></i>{escape(text)}</span>' for kind, text, _ in PARTS)
    rows = [("all ranks", run.split), *plans, *ranks]
    numbers = [
        [name, *(duration(getattr(split, field)) for *_, field in PARTS)] for name, split in rows
    ]
    head = ["", *(text for _, text, _ in PARTS)]
    return _section(
        "Where the step time went",
        _note("Means, so that the parts add up to the mean step time."),
        charts.bars(
            [_split_bar(*row) for row in [("all ranks", run.split), *plans]], title="Split"
        ),
        f'<div class="key">{key}</div>',
        f"<h3>{_shown('Rank by rank', len(shown), len(ranks))}</h3>" if len(ranks) > 1 else "",
        charts.bars([_split_bar(*row) for row in shown], title="Split by rank")
        if len(ranks) > 1
        else "",
        _details("The same in numbers", _table(head, numbers[: 2 * MAX_ROWS], "tnnnn")),
    )


def _shown(title: str, shown: int, total: int) -> str:
    return title if shown == total else f"{title}: {shown} of {total}, all are in report.json"


def _split_bar(label: str, split: TimeSplit) -> Bar:
    parts = tuple(
        BarPart(kind, getattr(split, field), f"{label}, {text}: {duration(getattr(split, field))}")
        for kind, text, field in PARTS
    )
    return Bar(label, parts, f"{duration(split.step_s)}, {percent(split.exposed_share)} waiting")


def _plan_name(plan: PlanOutcome) -> str:
    return f"{plan.name} (epoch {plan.epoch})"


def _steps(run: RunAnalysis) -> str:
    if len(run.series) < 2:
        return ""
    marks = [(float(plan.first_step), plan.name) for plan in run.plans[1:][-12:]]
    times = [(float(point.step), point.step_time_s) for point in run.series]
    parts = [
        _note("Thin: each step, median over ranks. Thick: moving median. Dashed: a plan switch."),
        charts.line(times, title="Step time over steps", form=duration, marks=marks),
    ]
    losses = [(float(point.step), point.loss) for point in run.series if point.loss is not None]
    if len(losses) > 1:
        parts.append("<h3>Loss (mean over ranks)</h3>")
        parts.append(
            charts.line(
                losses,
                title="Loss over steps",
                form=lambda loss: f"{loss:.3g}",
                marks=marks,
                from_zero=False,
            )
        )
    return _section("Step time over the run", *parts)


def _plans(run: RunAnalysis) -> str:
    if not run.plans or run.world_size == 1:
        return ""
    head = ["plan", "steps", "step time", "a step's buckets", "for a bucket of", "bound"]
    head += ["predicted", "measured", "efficiency predicted", "measured"]
    shown = run.plans[-MAX_ROWS:]
    parts = [_table(head, [_plan_row(plan) for plan in shown], "tnnnnnnnnn")]
    compared = {plan.reason for plan in run.choice.candidates} if run.choice is not None else set()
    is_ring = executors_of(run.backend, asked=True).native_is_ring
    parts += [
        _note(f"{_plan_name(plan)}: {plan.plan.reason}.")
        for plan in shown[-8:]
        if plan.plan is not None and plan.plan.reason and plan.plan.reason not in compared
    ]
    if run.choice is not None:
        refuted = {
            each.plan.graph_version for each in run.plans if each.plan and each.is_bound_refuted
        }
        rows = [
            [
                candidate_name(plan, native_is_ring=is_ring)
                + (" (chosen)" if plan.algorithm == run.choice.chosen else ""),
                duration(plan.predicted_s),
                rate(plan.algbw_bytes_per_s),
                percent(plan.efficiency) if plan.graph_version not in refuted else "-",
            ]
            for plan in run.choice.candidates[:MAX_ROWS]
        ]
        parts.append(f"<h3>What was compared, for {escape(size(run.choice.nbytes))}</h3>")
        parts.append(_table(["candidate", "predicted", "algbw", "efficiency"], rows, "tnnn"))
        parts.append(_note(*map(_why, run.choice.candidates[:8])))
    return _section("Plans against the bound", *parts)


def _why(plan: Plan) -> str:
    """Most reasons begin with the algorithm's name."""
    named = plan.reason.startswith(plan.algorithm)
    return f"{plan.reason}." if named else f"{plan.algorithm}: {plan.reason}."


def _plan_row(plan: PlanOutcome) -> list[str]:
    known = plan.plan is not None and plan.plan.predicted_s > 0
    return [
        _plan_name(plan),
        f"{plan.first_step}-{plan.last_step}",
        duration(plan.step_time_s),
        _maybe(plan.step_transfer_s),
        size(plan.plan.nbytes) if plan.plan is not None and known else "-",
        duration(plan.plan.bound_s) if plan.plan is not None and known else "-",
        duration(plan.plan.predicted_s) if plan.plan is not None and known else "-",
        _maybe(plan.measured_s),
        describe_predicted_efficiency(plan),
        describe_measured_efficiency(plan) if known else "-",
    ]


def _maybe(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else "-"


def _topology(run: RunAnalysis) -> str:
    if run.world_size == 1:
        return ""
    try:
        graph = load(json.dumps(run.graph), source="record") if run.graph is not None else None
    except GraphError:
        graph = None
    if graph is None:
        return ""
    last = run.plans[-1].plan if run.plans else None
    picture = svg(
        graph,
        cut=last.bound_cut if last is not None else (),
        bottleneck=last.bottleneck if last is not None else (),
    )
    words = _beside_candidates(run.choice) if run.choice is not None else []
    fits = [
        f"Measured on links of class {fit.link_class}: "
        f"{rate(fit.measured.bandwidth_bytes_per_s)} and {duration(fit.measured.alpha_s)} a "
        f"message, from {fit.num_samples} bucket times; planned with "
        f"{rate(fit.planned.bandwidth_bytes_per_s)}."
        for fit in run.fits
    ]
    return _section(
        "The links and their bottleneck",
        f'<div class="scroll picture" tabindex="0">{picture}</div>',
        "".join(f"<p>{escape(text)}</p>" for text in words),
        _note(*fits),
    )


def _beside_candidates(choice: Choice) -> list[str]:
    """The lines of explain, except those for single candidates, which have a table."""
    names = tuple(
        f"{candidate_name(plan, native_is_ring=is_ring)}: "
        for plan in choice.candidates
        for is_ring in (True, False)
    )
    return [text for text in choice.explain if not text.startswith(names)]


def _buckets(run: RunAnalysis) -> str:
    if not run.buckets or run.world_size == 1:
        return ""
    names = {plan.epoch: plan.name for plan in run.plans}
    ends = {run.buckets[0].epoch, run.buckets[-1].epoch}
    shown = [bucket for bucket in run.buckets if bucket.epoch in ends]
    others = [bucket for bucket in run.buckets if bucket.epoch not in ends]
    top = shown[: 2 * MAX_ROWS]
    return _section(
        "Buckets",
        _note("Bus bandwidth of each DDP bucket under the plan it was moved by."),
        charts.bars([_bucket_bar(bucket, names) for bucket in top], title="busbw by bucket"),
        _bucket_table(top, names),
        _details("Under the plans between", _bucket_table(others[:MAX_EVENT_ROWS], names))
        if others
        else "",
    )


def _bucket_bar(bucket: BucketStats, names: dict[int, str]) -> Bar:
    kind = "rest" if bucket.epoch == 0 else "compute"
    speed = rate(bucket.busbw_bytes_per_s)
    label = f"#{bucket.index} {names.get(bucket.epoch, '')} ({bucket.epoch})"
    return Bar(label, (BarPart(kind, bucket.busbw_bytes_per_s, f"{label}: {speed}"),), speed)


def _bucket_table(buckets: Sequence[BucketStats], names: dict[int, str]) -> str:
    rows = [
        [
            f"{names.get(bucket.epoch, '')} (epoch {bucket.epoch})",
            str(bucket.index),
            size(bucket.nbytes),
            duration(bucket.transfer_s),
            rate(bucket.algbw_bytes_per_s),
            rate(bucket.busbw_bytes_per_s),
            str(bucket.num_samples),
        ]
        for bucket in buckets
    ]
    head = ["plan", "bucket", "size", "transfer", "algbw", "busbw", "steps"]
    return _table(head, rows, "tnnnnnn")


def _skew(run: RunAnalysis) -> str:
    if not run.skew:
        return ""
    latest = sorted(run.skew, key=lambda skew: -skew.median_s)[:MAX_ROWS]
    kept = {skew.rank for skew in latest}
    bars = [
        Bar(
            f"rank {skew.rank} on {skew.node}",
            (
                BarPart("exposed", skew.median_s, f"median: {duration(skew.median_s)}"),
                BarPart("rest", skew.p95_s - skew.median_s, f"95 %: {duration(skew.p95_s)}"),
            ),
            f"{duration(skew.median_s)}, {duration(skew.p95_s)}",
        )
        for skew in run.skew
        if skew.rank in kept
    ]
    notes = [
        "How much later than the earliest rank a rank's gradients were ready, over all buckets "
        "and steps: the median, and the 95th percentile. The others wait for a rank that is late."
    ]
    if run.num_clocks > 1:
        notes.append(
            f"The {run.num_clocks} hosts' clocks were aligned by the ends of all-reduces, so "
            "differences between hosts below a transfer time mean little."
        )
    title = _shown("Who arrives late", len(latest), len(run.skew))
    return _section(title, _note(*notes), charts.bars(bars, title="Arrival skew by rank"))


def _events(run: RunAnalysis) -> str:
    if not run.events:
        return ""
    start_s = run.events[0].unix_s
    shown = run.events[:MAX_EVENT_ROWS]
    rows = [
        [f"{event.unix_s - start_s:.1f} s", str(event.step), event.kind, event.text]
        for event in shown
    ]
    omitted = run.events_omitted + len(run.events) - len(shown)
    return _section(
        "Events",
        _table(["time", "step", "kind", "what"], rows, "nntw"),
        _note(f"{count(omitted, 'event')} more were left out.") if omitted else "",
    )
