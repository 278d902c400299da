"""The words after ``trainmesh lab run``: torchrun's and ``trainmesh launch``'s flags and a script,
with a few of them changed, refused or added."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainmesh.launcher.arguments import Parser
from trainmesh.launcher.run import options, target

__all__ = ["LabArguments", "parse"]

REFUSED = {
    "nnodes": "the topology file says how many hosts there are",
    "node_rank": "the topology file says which ranks a host has",
    "rdzv_backend": "the lab's hosts meet by themselves",
    "rdzv_endpoint": "the lab's hosts meet by themselves",
    "rdzv_id": "the lab's hosts meet by themselves",
    "rdzv_conf": "the lab's hosts meet by themselves",
    "master_addr": "the lab's hosts meet by themselves",
    "master_port": "the lab's hosts meet by themselves",
    "standalone": "a lab has several hosts",
    "local_addr": "the lab's hosts meet by themselves",
    "etcd": "the lab has an etcd of its own",
}


@dataclass(frozen=True)
class LabArguments:
    """What ``trainmesh lab run`` was told."""

    topology: Path
    declare: bool
    num_ranks_a_host: int | None
    report: Path | None
    progress: str
    dry_run: bool
    debug: bool
    flags: tuple[str, ...]
    """For the launch in each host."""
    program: tuple[str, ...]


def parse(words: Sequence[str]) -> LabArguments:
    """Read the words; ends the process (exit code 2) with one line where they are wrong.

    Raises:
        ConfigError: there is no such script or module.
    """
    parser = _everything()
    given = parser.parse(words)
    for name, why in REFUSED.items():
        if getattr(given, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: {why}")
    if given.topology is None:
        parser.error("--topology is missing")
    ranks = given.nproc_per_node
    if ranks is not None and not ranks.isdecimal():
        parser.error(f"--nproc-per-node {ranks}: a lab needs a number")
    if given.log_dir is None and not given.redirects == given.tee == "0":
        parser.error("--log-dir is missing: without it, log files go with the lab")
    _check_target(given)
    num_program_words = 1 + len(given.training_script_args)
    flags = _own().parse_known_args(words[:-num_program_words])[1]
    return LabArguments(
        topology=given.topology,
        declare=not given.no_declare,
        num_ranks_a_host=None if ranks is None else int(ranks),
        report=given.report,
        progress=given.progress,
        dry_run=given.dry_run,
        debug=given.debug,
        flags=tuple(flag for flag in flags if flag != "--"),
        program=tuple(words[-num_program_words:]),
    )


def _everything() -> Parser:
    """All flags in full; abbreviations could not be told apart from a host's."""
    parser = Parser(
        prog="trainmesh lab run",
        description="Runs a script on the emulated hosts of a topology file.",
        parents=options.parent_parsers(),
        add_help=False,
        allow_abbrev=False,
    )
    options.add_arguments(parser)
    group = parser.add_argument_group("lab")
    group.add_argument(
        "--no-declare",
        action="store_true",
        help="don't tell trainmesh the topology: it has to find out",
    )
    parser.set_defaults(nproc_per_node=None)
    return parser


def _own() -> argparse.ArgumentParser:
    """The flags that the hosts' launches don't get as they are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--topology", "--report", "--progress"):
        parser.add_argument(flag)
    parser.add_argument("--nproc-per-node", "--nproc_per_node")
    for flag in ("--no-declare", "--dry-run", "--debug"):
        parser.add_argument(flag, action="store_true")
    return parser


def _check_target(given: argparse.Namespace) -> None:
    """Once here, instead of once in each host."""
    if given.module and not given.run_path:
        target.check_module(given.training_script)
    elif given.no_python and not given.run_path:
        target.check_program(given.training_script)
    else:
        target.check_script(given.training_script)
