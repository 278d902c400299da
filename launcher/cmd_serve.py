"""``trainmesh serve``: route OpenAI-compatible requests to the endpoints in a file."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from trainmesh.errors import ConfigError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, type=Path, metavar="FILE",
        help="serve.yaml: models, their endpoints, and everything else (docs/serving.md)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="check the file and exit")


def run(args: argparse.Namespace) -> int:
    try:
        import uvloop

        from trainmesh.serving.config.reload import Watcher
        from trainmesh.serving.control.service import Service
        from trainmesh.serving.decide.scorers import load_scorers
        from trainmesh.serving.log import Logs
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"trainmesh serve needs {error.name}; install it with: pip install 'trainmesh[serve]'"
        ) from error
    watcher = Watcher(args.config, os.environ, load_scorers()[0])
    if args.check:
        _say(f"{args.config}: fine")
        return 0
    logs = Logs("control")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(Service, watcher))
    finally:
        logs.close()
    return 0


async def _serve(service: type, watcher: object) -> None:
    await service(watcher, _say).run()


def _say(line: str) -> None:
    print(f"trainmesh serve: {line}", file=sys.stderr, flush=True)
