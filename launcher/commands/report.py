"""``trainmesh report DIR``: the report of a finished run, in the terminal."""

from __future__ import annotations

import argparse
import sys

import msgspec

from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.report.analysis_types import (
    RunAnalysis,
    describe_measured_efficiency,
    describe_predicted_efficiency,
)
from trainmesh.launcher.report.report import Report, load_report
from trainmesh.launcher.terminal import Output
from trainmesh.units import count, duration, percent, rate, size

__all__ = ["add_arguments", "run"]

MAX_ROWS = 48
"""Of each table in a terminal; the HTML page and the JSON have more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=file_path, help="what was given to launch --report")
    parser.add_argument("--json", action="store_true", help="print report.json")


def run(args: argparse.Namespace) -> int:
    report = load_report(args.directory)
    if args.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(report, Output())
    return 0


def _show(report: Report, output: Output) -> None:
    summary, run = report.headline, report.run
    output.text(f"{summary.title}.", style="bold")
    output.text(*(f"- {point}" for point in (*summary.points, *run.missing)))
    output.text(f"What to do next: {summary.advice}")
    _show_time(run, output)
    _show_plans(run, output)
    _show_buckets(run, output)
    _show_skew(run, output)
    if run.events:
        output.heading("Events")
        output.text(*(f"step {event.step}: {event.kind}: {event.text}" for event in run.events))
    if run.events_omitted:
        output.text(f"{count(run.events_omitted, 'event')} more were left out.")


def _show_time(run: RunAnalysis, output: Output) -> None:
    if run.split is None:
        return
    rows = [("all ranks", run.split)]
    rows += [(f"rank {item.rank}", item.split) for item in run.rank_splits]
    output.heading("Where the step time went (means)")
    output.table(
        ["", "step", "compute", "with hidden communication", "waiting", "rest", "waiting share"],
        [
            [
                name,
                *map(duration, (split.step_s, split.compute_s, split.hidden_s)),
                *map(duration, (split.exposed_s, split.rest_s)),
                percent(split.exposed_share),
            ]
            for name, split in rows
        ],
        "tnnnnnn",
        MAX_ROWS,
    )


def _show_plans(run: RunAnalysis, output: Output) -> None:
    if not run.plans or run.world_size == 1:
        return
    rows = []
    for outcome in run.plans:
        plan = outcome.plan
        measured_s = outcome.measured_s
        rows.append(
            [
                str(outcome.epoch),
                outcome.name,
                f"{outcome.first_step}-{outcome.last_step}",
                duration(outcome.step_time_s),
                size(plan.nbytes) if plan is not None else "-",
                duration(plan.bound_s) if plan is not None else "-",
                duration(plan.predicted_s) if plan is not None else "-",
                duration(measured_s) if measured_s is not None else "-",
                describe_predicted_efficiency(outcome),
                describe_measured_efficiency(outcome),
            ]
        )
    output.heading("Plans against the bound (for a bucket of the given size)")
    head = ["epoch", "plan", "steps", "step time", "bucket", "bound", "predicted", "measured"]
    output.table([*head, "efficiency predicted", "measured"], rows, "ntnnnnnnnn", MAX_ROWS)


def _show_buckets(run: RunAnalysis, output: Output) -> None:
    if not run.buckets or run.world_size == 1:
        return
    rows = [
        [
            str(bucket.epoch),
            str(bucket.index),
            size(bucket.nbytes),
            duration(bucket.transfer_s),
            rate(bucket.algbw_bytes_per_s),
            rate(bucket.busbw_bytes_per_s),
            str(bucket.num_samples),
        ]
        for bucket in run.buckets
    ]
    output.heading("Buckets")
    head = ["epoch", "bucket", "size", "transfer", "algbw", "busbw", "steps"]
    output.table(head, rows, "nnnnnnn", MAX_ROWS)


def _show_skew(run: RunAnalysis, output: Output) -> None:
    if not run.skew:
        return
    rows = [
        [str(skew.rank), skew.node, duration(skew.median_s), duration(skew.p95_s)]
        for skew in run.skew
    ]
    output.heading("Arrival skew (later than the earliest rank)")
    output.table(["rank", "node", "median", "95 %"], rows, "ntnn", MAX_ROWS)
