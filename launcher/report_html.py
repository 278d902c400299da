"""``report.html``: one file, no scripts, nothing loaded from elsewhere; light and dark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from trainmesh.errors import GraphError
from trainmesh.launcher import charts
from trainmesh.launcher.analysis import RunAnalysis
from trainmesh.launcher.findings import advice, plan_efficiency, summary
from trainmesh.launcher.format import duration, percent, rate, size
from trainmesh.topology.document import load
from trainmesh.topology.graph import LinkGraph, Provenance
from trainmesh.topology.render import svg

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6880; --page: #f6f7fa; --card: #fff;
  --line: #dde2ec; --accent: #2563c9; --compute: #7aa6e8; --hidden: #b9d3f7; --exposed: #e0603f;
  --rest: #c3c9d5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf4; --soft: #9aa5ba; --page: #12161d;
  --card: #1a202a; --line: #2d3645; --accent: #7fb0ff; --compute: #4676bd; --hidden: #2e4d7d;
  --exposed: #e0603f; --rest: #4a5467; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 0 0 10px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; margin-top: 18px; overflow-x: auto; }
p { margin: 6px 0; } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart text { fill: var(--soft); } .chart .grid { stroke: var(--line); }
.chart .series { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.chart line.mark { stroke: var(--exposed); stroke-dasharray: 4 4; stroke-width: 1.5; }
.chart text.mark { fill: var(--exposed); font-weight: 600; }
.compute { fill: var(--compute); background: var(--compute); }
.hidden { fill: var(--hidden); background: var(--hidden); }
.exposed { fill: var(--exposed); background: var(--exposed); }
.rest { fill: var(--rest); background: var(--rest); }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; font-size: 13px;
  color: var(--soft); }
.key span::before { content: ""; display: inline-block; width: 12px; height: 12px;
  border-radius: 3px; margin-right: 6px; vertical-align: -1px; background: inherit; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  margin-right: 6px; vertical-align: -1px; }
.advice { border-left: 4px solid var(--exposed); padding-left: 12px; }
"""


def page(run: RunAnalysis) -> str:
    """The whole document."""
    sections = [
        _head(run),
        _time(run),
        _steps(run),
        _plans(run),
        _topology(run),
        _buckets(run),
        _ranks(run),
        _events(run),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>trainmesh report</title><style>{STYLE}</style></head><body><main>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _paragraphs(texts: Sequence[str], kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{escape(text)}</p>" for text in texts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int) -> str:
    """Columns from ``numbers_from`` on are numbers, flush right."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= numbers_from else ''}>{escape(text)}</{tag}>"
            for column, text in enumerate(texts)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _head(run: RunAnalysis) -> str:
    return (
        f"<h1>trainmesh report</h1><section>{_paragraphs(summary(run))}"
        f"{_paragraphs(advice(run), 'advice')}</section>"
    )


def _time(run: RunAnalysis) -> str:
    if run.shares is None:
        return ""
    rows = [
        (
            "all",
            _stack(
                run.shares.compute_s, run.shares.hidden_s, run.shares.exposed_s, run.shares.rest_s
            ),
        )
    ]
    rows += [
        (
            f"rank {rank.rank}",
            _stack(
                rank.shares.compute_s,
                rank.shares.hidden_s,
                rank.shares.exposed_s,
                rank.shares.rest_s,
            ),
        )
        for rank in run.ranks[:32]
    ]
    key = "".join(
        f'<span><i class="{kind}"></i>{text}</span>'
        for kind, text in (
            ("compute", "forward and backward"),
            ("hidden", "the same, with communication beside it"),
            ("exposed", "waiting for communication"),
            ("rest", "optimizer, data, the rest"),
        )
    )
    chart = charts.bars(rows, title="Where the median step went", unit="ms")
    return _section(
        "Where the step time went",
        chart,
        f'<div class="key">{key}</div>',
    )


def _stack(
    compute_s: float, hidden_s: float, exposed_s: float, rest_s: float
) -> tuple[tuple[str, float], ...]:
    """Milliseconds of the parts of a bar; hidden communication is a part of compute."""
    return (
        ("compute", 1e3 * max(0.0, compute_s - hidden_s)),
        ("hidden", 1e3 * min(hidden_s, compute_s)),
        ("exposed", 1e3 * exposed_s),
        ("rest", 1e3 * rest_s),
    )


def _steps(run: RunAnalysis) -> str:
    if len(run.points) < 2:
        return ""
    marks = [(plan.first_step, plan.algorithm) for plan in run.plans[1:]]
    parts = [
        charts.line(
            [(point.step, 1e3 * point.step_time_s) for point in run.points],
            title="Step time over the run",
            unit="ms",
            marks=marks,
        )
    ]
    losses = [(point.step, point.loss) for point in run.points]
    known = [(float(step), loss) for step, loss in losses if loss is not None]
    if len(known) > 1:
        parts.append("<h2>Loss</h2>")
        parts.append(
            charts.line(known, title="Loss over the run", unit="", marks=marks, from_zero=False)
        )
    return _section("Step time over the run", *parts)


def _plans(run: RunAnalysis) -> str:
    rows = []
    for plan in run.plans:
        predicted, measured = plan_efficiency(plan)
        rows.append(
            [
                f"{plan.algorithm} (epoch {plan.epoch})",
                f"{plan.first_step} to {plan.last_step}",
                duration(plan.step_time_s),
                duration(plan.transfer_s),
                duration(plan.predicted_s) if plan.predicted_s else "-",
                duration(plan.measured_largest_s) if plan.measured_largest_s else "-",
                duration(plan.bound_s) if plan.bound_s else "-",
                percent(predicted) if predicted is not None else "-",
                percent(measured) if measured is not None else "-",
            ]
        )
    head = [
        "plan",
        "steps",
        "step time",
        "all buckets",
        "largest bucket, predicted",
        "measured",
        "bound",
        "efficiency, predicted",
        "measured",
    ]
    why = [f"{plan.algorithm} (epoch {plan.epoch}): {plan.reason}." for plan in run.plans]
    return _section(
        "Plans against the bound",
        _table(head, rows, numbers_from=1),
        _paragraphs(why, "soft"),
        _paragraphs([_provenance(run)], "soft"),
    )


def _provenance(run: RunAnalysis) -> str:
    graph = _graph(run)
    if graph is None:
        return ""
    declared = any(link.provenance is Provenance.DECLARED for link in graph.links)
    source = "declared in the topology file" if declared else "assumed, as no file declares them"
    return (
        f"Predicted times and the bound follow from the link graph, whose links are {source}, "
        "corrected by what the hooks measured. Measured times come from this run."
    )


def _graph(run: RunAnalysis) -> LinkGraph | None:
    if run.graph is None:
        return None
    try:
        return load(json.dumps(run.graph), source="graph of the record")
    except GraphError:
        return None


def _topology(run: RunAnalysis) -> str:
    graph = _graph(run)
    if graph is None:
        return ""
    last = run.plans[-1] if run.plans else None
    picture = svg(
        graph,
        cut=last.bound_cut if last else (),
        bottleneck=last.bottleneck if last else (),
    )
    words = _paragraphs(run.choice.explain) if run.choice is not None else ""
    fits = [
        f"Measured on links of class {fit.link_class}: "
        f"{rate(fit.measured.bandwidth_bytes_per_s)} and {duration(fit.measured.alpha_s)} a "
        f"message "
        f"(from {fit.num_samples} bucket times); planned with "
        f"{rate(fit.planned.bandwidth_bytes_per_s)}."
        for fit in run.fits
    ]
    return _section("The links and their bottleneck", picture, words, _paragraphs(fits, "soft"))


def _buckets(run: RunAnalysis) -> str:
    names = {plan.epoch: plan.algorithm for plan in run.plans}
    rows = [
        [
            f"{bucket.index}",
            f"{names.get(bucket.epoch, 'native')} (epoch {bucket.epoch})",
            size(bucket.nbytes),
            duration(bucket.transfer_s),
            rate(bucket.algbw_bytes_per_s),
            rate(bucket.busbw_bytes_per_s),
            str(bucket.count),
        ]
        for bucket in run.buckets[:200]
    ]
    head = ["bucket", "plan", "size", "transfer", "algbw", "busbw", "steps"]
    note = "Median transfer time; waiting for a rank that is late does not count."
    return (
        _section("Buckets", _table(head, rows, numbers_from=2), _paragraphs([note], "soft"))
        if rows
        else ""
    )


def _ranks(run: RunAnalysis) -> str:
    rows = [
        [
            str(rank.rank),
            rank.node,
            duration(rank.skew_s),
            duration(rank.skew_p95_s),
            duration(rank.shares.compute_s),
            duration(rank.shares.exposed_s),
        ]
        for rank in run.ranks[:1000]
    ]
    head = ["rank", "node", "late by (median)", "late by (95 %)", "compute", "waiting"]
    note = "Lateness of a rank's buckets against the earliest rank: a straggler shows here."
    return (
        _section("Arrival skew", _table(head, rows, numbers_from=2), _paragraphs([note], "soft"))
        if rows
        else ""
    )


def _events(run: RunAnalysis) -> str:
    start_s = run.events[0].unix_s if run.events else 0.0
    rows = [
        [f"{event.unix_s - start_s:.1f} s", str(event.step), event.kind, event.text]
        for event in run.events
    ]
    return (
        _section("Events", _table(["time", "step", "kind", "what"], rows, numbers_from=99))
        if rows
        else ""
    )
