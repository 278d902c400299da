"""``trainmesh doctor``: is this machine ready, and if not, what is missing and how to get it."""

from __future__ import annotations

import argparse
import os
import sys

import msgspec

from trainmesh.errors import ConfigError
from trainmesh.launcher.arguments import add_etcd
from trainmesh.launcher.doctor.checks import Check, CheckState, check_all
from trainmesh.launcher.terminal import Output
from trainmesh.units import count

__all__ = ["add_arguments", "run"]

STYLES = {CheckState.OK: "green", CheckState.WARN: "yellow", CheckState.FAIL: "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_etcd(
        parser.add_argument,
        "an etcd that must answer (default: $TRAINMESH_ETCD, else one can be started here)",
    )
    parser.add_argument(
        "--nproc-per-node", metavar="N", type=int, help="ranks that are to run on this machine"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.nproc_per_node is not None and args.nproc_per_node < 1:
        raise ConfigError(f"--nproc-per-node {args.nproc_per_node}: must be 1 or more")
    checks = check_all(
        os.environ,
        etcd=args.etcd,
        insecure_etcd=args.insecure_etcd,
        ranks=args.nproc_per_node,
    )
    if args.json:
        sys.stdout.write(msgspec.json.encode(checks).decode() + "\n")
    else:
        _show(checks, Output())
    return int(any(check.state is CheckState.FAIL for check in checks))


def _show(checks: list[Check], output: Output) -> None:
    for check in checks:
        output.text(f"{check.state:<5} {check.name:<14} {check.text}", style=STYLES[check.state])
        if check.fix:
            output.text(f"{'':<20} -> {check.fix}")
    failed = sum(check.state is CheckState.FAIL for check in checks)
    output.text(f"{count(failed, 'problem')} to solve" if failed else "ready")
