"""``trainmesh serve``: route OpenAI-compatible requests to the endpoints in a file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
from collections.abc import Callable

from trainmesh.console import write_error
from trainmesh.launcher.arguments import file_path
from trainmesh.launcher.run import signals

__all__ = ["add_arguments", "run"]

FEW_OPEN_FILES = 4096
"""Below this a router says how few clients it can take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, type=file_path, metavar="FILE",
        help="serve.yaml: models, their endpoints, and everything else (docs/serving.md)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="check the file and exit")


def run(args: argparse.Namespace) -> int:
    with signals.exiting():
        import uvloop

        from trainmesh.serving.decide.policies.scorers import load_scorers
        from trainmesh.serving.loading.preflight import preflight
        from trainmesh.serving.loading.reload import Watcher
        from trainmesh.serving.observe.log import CONTROL, Logs, log_event
        from trainmesh.serving.proxy.open_files import connections_that_fit
        from trainmesh.serving.service import RouterService
    watcher = Watcher(args.config, os.environ, load_scorers()[0])
    if args.check:
        preflight(watcher.config)
        write_error(f"trainmesh serve: {args.config}: fine\n")
        return 0

    def say(line: str) -> None:
        log_event(CONTROL, "control", what=line)

    _pass_on_streams()
    logs = Logs("control")
    try:
        _raise_open_files(connections_that_fit, say)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(RouterService(watcher, say).run())
    finally:
        logs.close()
    return 0


def _raise_open_files(connections_that_fit: Callable[[], int], say: Callable[[str], None]) -> None:
    """Let this process and its workers have as many files open as they may.

    A shell begins with 1 024 for the sake of programs that call select(2), which we don't; 500
    requests at once would be refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < FEW_OPEN_FILES:
        most = connections_that_fit()
        say(f"only {hard} files may be open: a worker takes {most} clients; raise ulimit -Hn")


def _pass_on_streams() -> None:
    """Workers get our standard streams, also those that were closed and are /dev/null now: libuv
    aborts where a file of its own has one of their numbers."""
    for number in range(3):
        with contextlib.suppress(OSError):
            os.set_inheritable(number, True)
