"""``trainmesh status [JOB]``: what the running jobs do now."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec
from rich.console import Console
from rich.table import Table

from trainmesh.launcher import jobs
from trainmesh.launcher.format import duration, percent
from trainmesh.types import JobStatus

__all__ = ["add_arguments", "run"]

WATCH_EVERY_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs.add_arguments(parser)
    parser.add_argument("--watch", action="store_true", help="show it again every second")


def run(args: argparse.Namespace) -> int:
    console = Console()
    while True:
        statuses = jobs.find_jobs(args)
        if args.json:
            sys.stdout.write(msgspec.json.encode(statuses).decode() + "\n")
        else:
            if args.watch:
                console.clear()
            _show(statuses, console, time.time())
        if not args.watch:
            return 0
        sys.stdout.flush()
        time.sleep(WATCH_EVERY_S)


def _show(statuses: list[JobStatus], console: Console, now_s: float) -> None:
    if not statuses:
        console.print("no job is running")
    for status in statuses:
        plan = status.plan.algorithm if status.plan is not None else "native"
        age_s = max(0.0, now_s - status.updated_unix_s)
        console.print(
            f"job {status.job}: {status.world_size} ranks, step {status.step}, "
            f"{duration(status.step_time_s)} a step, "
            f"{percent(status.exposed_share)} of it waiting on communication",
            highlight=False,
        )
        loss = f"{status.loss:.4f}" if status.loss is not None else "not known"
        console.print(
            f"plan {plan} (epoch {status.epoch}), loss {loss}, as of {age_s:.0f} s ago",
            highlight=False,
        )
        if status.ranks:
            console.print(_ranks(status))
        for event in status.events[-10:]:
            console.print(
                f"step {event.step}: {event.kind}: {event.text}", highlight=False, markup=False
            )


def _ranks(status: JobStatus) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "node", "pid", "step", "epoch", "late by", "waiting"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for rank in status.ranks:
        table.add_row(
            str(rank.rank),
            rank.node,
            str(rank.pid),
            str(rank.step),
            str(rank.epoch),
            duration(rank.skew_s),
            percent(rank.exposed_share),
        )
    return table
