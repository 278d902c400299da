"""``trainmesh report DIR``: the report of a finished run, in the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from trainmesh.launcher.analysis import RunAnalysis
from trainmesh.launcher.findings import advice, plan_efficiency, summary
from trainmesh.launcher.format import duration, percent, rate, size
from trainmesh.launcher.report import load_report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="what was given to launch --report")
    parser.add_argument("--json", action="store_true", help="print report.json")


def run(args: argparse.Namespace) -> int:
    report = load_report(args.directory)
    if args.json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return 0
    console = Console(highlight=False)
    for text in (*summary(report.run), *advice(report.run)):
        console.print(text, markup=False)
    for title, table in _tables(report.run):
        console.print(f"\n{title}", style="bold")
        console.print(table)
    if report.run.events:
        console.print("\nEvents", style="bold")
    for event in report.run.events:
        console.print(f"step {event.step}: {event.kind}: {event.text}", markup=False)
    return 0


def _tables(run: RunAnalysis) -> list[tuple[str, Table]]:
    found = []
    if run.shares is not None:
        shares = run.shares
        row = [
            duration(value)
            for value in (shares.compute_s, shares.hidden_s, shares.exposed_s, shares.rest_s)
        ]
        head = ["compute", "of it beside communication", "waiting", "rest"]
        found.append(("Where the median step went", _table(head, [row])))
    if run.plans:
        found.append(("Plans against the bound", _plans(run)))
    if run.buckets:
        head = ["bucket", "epoch", "size", "transfer", "algbw", "busbw"]
        rows = [
            [
                str(bucket.index),
                str(bucket.epoch),
                size(bucket.nbytes),
                duration(bucket.transfer_s),
                rate(bucket.algbw_bytes_per_s),
                rate(bucket.busbw_bytes_per_s),
            ]
            for bucket in run.buckets[:50]
        ]
        found.append(("Buckets", _table(head, rows)))
    if run.ranks:
        rows = [
            [str(rank.rank), rank.node, duration(rank.skew_s), duration(rank.shares.exposed_s)]
            for rank in run.ranks[:64]
        ]
        found.append(("Arrival skew", _table(["rank", "node", "late by", "waiting"], rows)))
    return found


def _plans(run: RunAnalysis) -> Table:
    rows = []
    for plan in run.plans:
        predicted, measured = plan_efficiency(plan)
        rows.append(
            [
                plan.algorithm,
                f"{plan.first_step}-{plan.last_step}",
                duration(plan.step_time_s),
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
        "predicted",
        "measured",
        "bound",
        "efficiency",
        "measured",
    ]
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in head:
        table.add_column(column, justify="left" if column in ("plan", "node") else "right")
    for row in rows:
        table.add_row(*row)
    return table
