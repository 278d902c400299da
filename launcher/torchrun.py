"""torch.distributed.run, unchanged, with each worker's command led through our bootstrap."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import run as torch_run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig

from trainmesh.errors import ConfigError, TrainmeshError

__all__ = ["SITE", "parser", "resolve", "run", "stopped", "through_bootstrap"]

BOOTSTRAP = "trainmesh.launcher.bootstrap"
SITE = Path(__file__).parent / "site"
WRONG_FLAGS = (ValueError, AssertionError, RuntimeError, OSError)


def parser() -> argparse.ArgumentParser:
    """Torchrun's own parser."""
    return torch_run.get_args_parser()


def resolve(args: argparse.Namespace) -> tuple[LaunchConfig, list[str]]:
    """What torchrun makes of its flags, and a worker's command line; nothing is changed.

    Raises:
        ConfigError: torchrun refuses a flag's value.
    """
    # Only a look: torchrun would make the log directory; and it sets its default port later.
    changed = {"log_dir": os.devnull, "master_port": args.master_port or 29500}
    copy = argparse.Namespace(**{**vars(args), **changed})
    try:
        with _quiet():
            config, command, arguments = torch_run.config_from_args(copy)
    except WRONG_FLAGS as error:
        raise ConfigError(f"torchrun refuses its flags: {_first_line(error)}") from error
    name = command if isinstance(command, str) else f"{sys.executable} (runpy.run_path)"
    return config, [name, *arguments]


def through_bootstrap(args: argparse.Namespace) -> argparse.Namespace:
    """The same flags with the worker's program wrapped. With --no-python there is nothing to
    wrap: ``SITE`` on PYTHONPATH does it."""
    wrapped = argparse.Namespace(**vars(args))
    program = [args.training_script, *args.training_script_args]
    if args.run_path:
        wrapped.training_script = str(Path(__file__).with_name("bootstrap.py"))
        wrapped.training_script_args = ["--run-path", *program]
    elif not args.no_python:
        wrapped.module, wrapped.training_script = True, BOOTSTRAP
        wrapped.training_script_args = [*(["-m"] if args.module else []), *program]
    return wrapped


def run(args: argparse.Namespace) -> int:
    """Do what torchrun does with ``args``.

    Returns:
        Torchrun's exit code: 0, or 1 if workers failed or a signal ended the run. The summary
        of the failed workers goes to stderr.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the run.
        TrainmeshError: torchrun could not run the workers.
    """
    try:
        record(torch_run.run)(through_bootstrap(args))
    except ChildFailedError as error:
        _trace(args)
        print(ChildFailedError(args.training_script, error.failures), file=sys.stderr)
        return 1
    except SignalException as error:
        _trace(args)
        return stopped(error)
    except (*WRONG_FLAGS, RendezvousError) as error:
        raise TrainmeshError(f"torchrun: {_first_line(error)}") from error
    return 0


def stopped(error: SignalException) -> int:
    """The exit code of a run that a signal has ended.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
    """
    if error.sigval == signal.SIGINT:
        raise KeyboardInterrupt from error
    print(f"trainmesh: stopped by {error.sigval.name}", file=sys.stderr)
    return 1


def _trace(args: argparse.Namespace) -> None:
    if args.debug:
        traceback.print_exc()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Torchrun warns and sets OMP_NUM_THREADS while it reads its flags: once is enough."""
    before = os.environ.get("OMP_NUM_THREADS")
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
