"""Entry point ``trainmesh``: picks a command, and ends every error in one line.

A command is imported when it is chosen, so ``trainmesh status`` never waits for torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from trainmesh import __version__
from trainmesh.console import say, say_error, write_error
from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.extras import lacking
from trainmesh.launcher import standard_output
from trainmesh.launcher.arguments import Parser
from trainmesh.launcher.run import signals

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS = {
    "launch": "run a training script as torchrun does, with measured and planned collectives",
    "report": "print the report of a finished run",
    "status": "what the jobs on this machine do now",
    "topology": "show, check, import or probe a link graph",
    "ping": "round trips to a node of a running job",
    "trace": "the path between two ranks in the link graph, hop by hop",
    "plan": "the bound and the best plan for a topology file, without a job",
    "explain": "the plan in force, and why",
    "lab": "run a job on an emulated cluster of network namespaces",
    "serve": "route OpenAI-compatible requests to inference endpoints",
    "quarantine": "which links, nodes and endpoints are out of use, and why",
    "endpoints": "what running routers see; cordon, drain or uncordon an endpoint",
    "why": "why a request went where it went",
    "replay": "decide a ledger again, with the same policy or another",
    "doctor": "check this machine: Python, torch, etcd, interfaces, GPUs, permissions",
}

ENDING = (TrainmeshError, OSError, KeyboardInterrupt, ModuleNotFoundError, signals.Ended)
"""What ends a command in a line, if in any."""


def build_parser(command: str | None) -> Parser:
    """The parser of all commands; only ``command`` has its arguments filled in."""
    parser = Parser(prog="trainmesh", description="Coordinates data-parallel training jobs.")
    parser.add_argument("--version", action="version", version=f"trainmesh {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = _load(name) if name == command else None
        parents: list[Any] = getattr(module, "parent_parsers", list)()
        chosen = commands.add_parser(
            name, help=summary, description=summary, parents=parents, add_help=not parents
        )
        if module is not None:
            module.add_arguments(chosen)
            chosen.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: the command's own, 2 for a usage error, 1 for other errors of ours; or the
        signal that is to end the process, negative (``entry`` does that).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("TRAINMESH_DEBUG", "0") not in ("", "0")
    command = next((word for word in argv if not word.startswith("-")), None)
    args = argparse.Namespace(debug=debug)
    try:
        with signals.exiting():
            args = build_parser(command).parse(argv)
        args.debug = args.debug or debug
        code: int = args.run(args)
    except ENDING as error:
        if args.debug:  # lab run finds it among the words of its own
            write_error(traceback.format_exc())
        code = _ended(_in_our_words(error, command))
    except SystemExit as stop:
        if _flush_output() or stop.code:
            raise
        return 1
    return code if _flush_output() else code or 1


def _in_our_words(error: BaseException, command: str | None) -> BaseException:
    """Report a missing extra, which the user can install; any other missing module is a bug, and
    raised."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    line = lacking(f"trainmesh {command}", error)
    if line is None:
        raise error
    return ConfigError(line)


def _ended(error: BaseException) -> int:
    """Say what has ended a command; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        say("interrupted")
        return -signal.SIGINT
    if isinstance(error, signals.Ended):
        return -error.number
    if isinstance(error, BrokenPipeError) or standard_output.is_from(error):
        return 1  # the first needs no word, and the second gets it when all is flushed
    return say_error(error) if isinstance(error, TrainmeshError | OSError) else 1


def _flush_output() -> bool:
    """Whether standard output took what was printed; it is not asked again, not even at exit."""
    problem = standard_output.problem()
    if problem is not None and not isinstance(problem, BrokenPipeError):
        say(f"error: {standard_output.NAME}: {problem.strerror}")
    return problem is None  # of a pipe whose reader has gone (| head) there is nothing to say


def _load(command: str) -> ModuleType:
    return importlib.import_module(f"trainmesh.launcher.commands.{command}")
