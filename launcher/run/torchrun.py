"""torch.distributed.run, unchanged: its parser, its run, its messages and its exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch.distributed import run as torch_run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.elastic.multiprocessing.errors.handlers import get_error_handler
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig

from trainmesh.console import say, write_error
from trainmesh.errors import TrainmeshError
from trainmesh.launcher import own_modules
from trainmesh.launcher.run.outcome import Ending, first_signal

__all__ = ["FlagRefused", "parser", "resolve", "run", "stopped"]

WRONG_FLAGS = (ValueError, AssertionError, RuntimeError, OSError)


class FlagRefused(TrainmeshError):
    """Torchrun refuses a flag's value; exit code 1, as torchrun's. What its parser refuses is a
    usage error, with 2."""


def parser() -> argparse.ArgumentParser:
    """Torchrun's own parser."""
    return torch_run.get_args_parser()


def resolve(args: argparse.Namespace) -> tuple[LaunchConfig, list[str]]:
    """What torchrun makes of its flags, and a worker's command line; nothing is changed.

    Raises:
        Refused: it is noted in TORCHELASTIC_ERROR_FILE, as torchrun does.
    """
    # Only a look: torchrun would make the log directory; and it sets its default port later.
    changed = {"log_dir": os.devnull, "master_port": args.master_port or 29500}
    copy = argparse.Namespace(**{**vars(args), **changed})
    try:
        with _quiet():
            config, command, arguments = torch_run.config_from_args(copy)
            _check_values(config)
    except WRONG_FLAGS as error:
        get_error_handler().record_exception(error)
        raise FlagRefused(f"torchrun refuses its flags: {_first_line(error)}") from error
    name = command if isinstance(command, str) else f"{sys.executable} (runpy.run_path)"
    return config, [name, *arguments]


def _check_values(config: LaunchConfig) -> None:
    """Check values that torchrun refuses later, by an assertion without a message or in the middle
    of the run.

    Raises:
        ValueError: such a value.
    """
    if config.nproc_per_node < 1:
        raise ValueError(f"--nproc-per-node {config.nproc_per_node}: must be 1 or more")
    if not 0 < config.monitor_interval <= threading.TIMEOUT_MAX:
        raise ValueError(
            f"--monitor-interval {config.monitor_interval:g}: must be a number of seconds above 0"
        )


def run(args: argparse.Namespace, ending: Ending) -> int:
    """Do what torchrun does with ``args``; ``ending`` hears how it ends.

    Returns:
        Torchrun's exit code: 0, or 1 if workers failed or a signal ended the run. What torchrun
        says of the failed workers goes to stderr.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the run before torchrun handled signals.
        TrainmeshError: torchrun could not run the workers.
    """
    try:
        with (
            own_modules.as_started() if args.run_path else nullcontext(),
            ending.watching(),
        ):
            record(torch_run.run)(args)
    except ChildFailedError as error:
        ending.children_failed(error)
        _show(error)
        return 1
    except SignalException as error:
        _trace(args)
        return stopped(error, ending)
    except (*WRONG_FLAGS, RendezvousError) as error:
        raise TrainmeshError(f"torchrun: {_first_line(error)}") from error
    ending.ended(0)
    return 0


def stopped(error: SignalException, ending: Ending) -> int:
    """Report once which signal has ended a run; returns torchrun's exit code for it, also for
    Ctrl-C."""
    number = first_signal(error)
    ending.stopped(number)
    if not ending.is_said:
        name = ending.outcome.signal
        say("interrupted" if name == "SIGINT" else f"stopped by {name}")
        ending.is_said = True
    return 1


def _show(error: ChildFailedError) -> None:
    """What torchrun prints as Python's last words: tools look for them in logs."""
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    text = "".join(traceback.format_exception(type(error), error, trace))
    write_error(text)


def _trace(args: argparse.Namespace) -> None:
    if args.debug:
        traceback.print_exc()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" in {Path(frame.filename).name}:{frame.lineno}" for frame in where)
    return f"{type(error).__name__}{place}; --debug shows the traceback"


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
