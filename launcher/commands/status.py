"""``trainmesh status [JOB]``: what the running jobs do now."""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from trainmesh.coordinator.tuning.asked import name, sentence
from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.launcher import jobs
from trainmesh.launcher.report.describe_outcome import describe_attempts
from trainmesh.launcher.run.progress import describe_plan, describe_step_time, describe_waiting
from trainmesh.launcher.terminal import Output
from trainmesh.types import JobStatus
from trainmesh.units import count, duration, percent

__all__ = ["add_arguments", "describe_asked", "run"]

WATCH_EVERY_S = 1.0
"""The coordinator writes its status once a second."""
MAX_EVENTS = 10
"""The latest: with the rest of the status they fit into a terminal."""
OLD_S = 10.0
"""A coordinator writes its status about once a second."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs.add_arguments(parser)
    parser.add_argument("--watch", action="store_true", help="show it again every second")


def run(args: argparse.Namespace) -> int:
    output = Output()
    while True:
        statuses = jobs.find_jobs(args)
        if args.json:
            sys.stdout.write(msgspec.json.encode(statuses).decode() + "\n")
        else:
            if args.watch:
                output.clear()
            _show(statuses, output)
        if not args.watch:
            return 0
        sys.stdout.flush()
        time.sleep(WATCH_EVERY_S)


def _show(statuses: list[JobStatus], output: Output) -> None:
    if not statuses:
        output.text("no job is running")
    for status in statuses:
        output.text(*(f"warning: job {status.job}: {text}" for text in status.troubles))
        age_s = status.age_s
        if age_s is not None and age_s > OLD_S and status.world_size and not status.troubles:
            output.text(
                f"warning: job {status.job}: what follows is {age_s:.0f} s old: {jobs.NO_LEADER}"
            )
        if not status.world_size:
            known = status.troubles or status.events
            output.text(
                f"job {status.job}: nothing is known of its ranks now"
                if known
                else f"job {status.job}: starting, no rank has reported yet"
            )
            output.text(*describe_attempts(status.outcome), *_event_lines(status))
            continue
        output.text(
            f"job {status.job}: {count(status.world_size, 'rank')}, step {status.step}, "
            f"{describe_step_time(status)}, {describe_waiting(status)}",
            f"plan {_plan(status)}, loss {_loss(status)}"
            + (f", as of {age_s:.0f} s ago" if age_s is not None else ""),
        )
        if len(status.ranks) < status.world_size:
            output.text(
                f"only {len(status.ranks)} of the {count(status.world_size, 'rank')} have "
                "introduced themselves; nothing is planned without the others"
            )
        if status.num_restarts:
            output.text(f"restarted {count(status.num_restarts, 'time')}")
        output.text(*describe_attempts(status.outcome))
        output.text(*describe_asked(status))
        if status.dropped:
            output.text(f"{count(status.dropped, 'report')} of ranks were lost on the way")
        if status.ranks:
            _show_ranks(status, output)
        output.text(*_event_lines(status))


def _event_lines(status: JobStatus) -> list[str]:
    return [f"step {e.step}: {e.kind}: {e.text}" for e in status.events[-MAX_EVENTS:]]


def _plan(status: JobStatus) -> str:
    text = f"{describe_plan(status)} (epoch {status.epoch})"
    if status.hint is not None and status.hint.epoch > status.epoch:
        text += f", {CommConfig.of(status.hint).words} (epoch {status.hint.epoch}) on its way"
    return text


def describe_asked(status: JobStatus) -> list[str]:
    """A line for everything that was asked for and is not in force yet."""
    return [
        sentence(item) if item.refusal else f"{name(item)} was asked for and is not in force yet"
        for item in status.asked
        if item.since_step is None
    ]


def _loss(status: JobStatus) -> str:
    return f"{status.loss:.4f}" if status.loss is not None else "not known"


def _show_ranks(status: JobStatus, output: Output) -> None:
    rows = [
        [
            str(rank.rank),
            rank.node,
            str(rank.pid),
            str(rank.step),
            str(rank.epoch),
            duration(rank.skew_s) if rank.skew_s is not None else "-",
            percent(rank.exposed_share) if rank.exposed_share is not None else "-",
        ]
        for rank in status.ranks
    ]
    output.table(["rank", "node", "pid", "step", "epoch", "late by", "waiting"], rows, "ntnnnnn")
