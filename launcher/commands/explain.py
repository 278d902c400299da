"""``trainmesh explain [JOB]``: the plan in force, and why."""

from __future__ import annotations

import argparse
import sys

import msgspec

from trainmesh.coordinator.tuning.comm_config import CommConfig
from trainmesh.launcher import jobs
from trainmesh.launcher.commands.status import describe_asked
from trainmesh.launcher.run.progress import describe_plan
from trainmesh.launcher.terminal import Output
from trainmesh.types import JobStatus

__all__ = ["add_arguments", "run", "words"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    status = jobs.find_job(args)
    if args.json:
        fields = {
            "job": status.job,
            "epoch": status.epoch,
            "plan": status.plan,
            "hint": status.hint,
            "choice": status.choice,
            "asked": status.asked,
            "fits": status.fits,
        }
        sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
    else:
        Output().text(*words(status))
    return 0


def words(status: JobStatus) -> list[str]:
    """The explanation, a line each."""
    if status.world_size == 1:
        lines = [f"Job {status.job} has one rank: there is nothing to communicate or to plan."]
        return lines + [f"{text}." for text in describe_asked(status)]
    lines = [
        f"Job {status.job} runs {describe_plan(status)} (epoch {status.epoch}) "
        f"at step {status.step}."
    ]
    if status.hint is not None and status.hint.epoch != status.epoch:
        lines.append(
            f"On its way: {CommConfig.of(status.hint).words} (epoch {status.hint.epoch}), due from "
            f"step {status.hint.effective_step}: {status.hint.reason}."
        )
    elif status.hint is not None:
        lines.append(f"Why: {status.hint.reason}.")
    lines += [f"{text}." for text in describe_asked(status)]
    if status.choice is None:
        lines.append("No choice has been made yet: the plan in force is still being measured.")
    else:
        lines += status.choice.explain
    for fit in status.fits:
        lines.append(
            f"Measured on links of class {fit.link_class}: "
            f"{fit.measured.bandwidth_bytes_per_s / 1e9:.3f} GB/s and "
            f"{fit.measured.alpha_s * 1e6:.0f} us a message, from {fit.num_samples} bucket times; "
            f"planned with {fit.planned.bandwidth_bytes_per_s / 1e9:.3f} GB/s."
        )
    return lines
