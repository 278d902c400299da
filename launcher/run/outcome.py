"""How a launch ends: torchrun's exit code, the signal, the workers that failed, the restarts."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as multiprocessing_api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from trainmesh.errors import TrainmeshError
from trainmesh.launcher.run.signals import Ended
from trainmesh.rundir import write_atomically
from trainmesh.types import Failure, Outcome, RecordLine
from trainmesh.wire import encode

__all__ = ["Ending", "first_signal"]

MAX_FAILURES = 64
"""Of the last attempt, and of earlier ones."""
MAX_WORDS = 300
"""Characters of an error's last line that fit into ours."""
NO_WORDS = ("To enable traceback see", "Signal ")
"""How the texts begin that torch makes up if a worker has left no error file."""
ATTEMPT_FAILED = "failed (exitcode: %s) local_rank: %s (pid: %s) of binary: %s"
"""Torch's log record of the first failed worker of an attempt; nothing else tells of one that is
followed by another attempt."""


class Ending:
    """The outcome of one launch, or of its attempts so far.

    Args:
        is_one_node: Whether local ranks are the job's ranks.
    """

    def __init__(self, *, is_one_node: bool) -> None:
        self._path: Path | None = None
        self._is_one_node = is_one_node
        self.is_said = False
        """Whether the user was told which signal it was."""
        self._failed: list[Failure] = []
        """The first failed worker of each attempt."""
        self.outcome = Outcome()

    def keep_at(self, path: Path) -> None:
        """Keep what is known at ``path`` for ``trainmesh status``."""
        self._path = path

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While torchrun runs: note failed attempts."""
        handler = _Failures(self)
        logger = logging.getLogger(multiprocessing_api.__name__)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def attempt_failed(self, local_rank: int, exit_code: int) -> None:
        """A worker of the attempt that runs has failed, the first of them."""
        self._failed = self._failed[-MAX_FAILURES + 1 :]
        rank = local_rank if self._is_one_node else None
        self._failed.append(
            Failure(
                attempt=self.outcome.num_failed_attempts,
                rank=rank,
                local_rank=local_rank,
                exit_code=exit_code,
            )
        )
        self.outcome = structs.replace(
            self.outcome,
            num_failed_attempts=self.outcome.num_failed_attempts + 1,
            failures=tuple(self._failed),
        )
        self._publish()

    def children_failed(self, error: ChildFailedError) -> None:
        """Torchrun gives up: the last attempt has failed like this, its root cause first."""
        last = max(0, self.outcome.num_failed_attempts - 1)
        first, _ = error.get_first_failure()
        ranks = [first, *(rank for rank in sorted(error.failures) if rank != first)]
        failures = [_failure(error.failures[rank], rank, last) for rank in ranks[:MAX_FAILURES]]
        earlier = [failure for failure in self._failed if failure.attempt < last]
        self.outcome = structs.replace(
            self.outcome,
            exit_code=1,
            num_failed_attempts=last + 1,
            failures=(*failures, *earlier),
        )

    def stopped(self, number: int) -> bool:
        """A signal ends the launch. False if another one came before: the first counts, because
        torchrun passes it on to the workers."""
        if self.outcome.signal:
            return False
        name = signal.Signals(number).name
        self.outcome = structs.replace(self.outcome, exit_code=1, signal=name)
        return True

    def ended(self, exit_code: int) -> None:
        """Torchrun has ended with this code."""
        self.outcome = structs.replace(self.outcome, exit_code=exit_code)

    def raised(self, error: BaseException) -> None:
        """Something else than torchrun's end has ended the launch."""
        if isinstance(error, SignalException):
            self.stopped(first_signal(error))
        elif isinstance(error, KeyboardInterrupt):
            self._killed(signal.SIGINT)
        elif isinstance(error, Ended):
            self._killed(error.number)
        else:
            code = error.exit_code if isinstance(error, TrainmeshError) else 1
            why = (str(error) or type(error).__name__)[:MAX_WORDS]
            self.outcome = structs.replace(self.outcome, exit_code=code, why=why)

    def lines(self) -> list[RecordLine]:
        """What a run's record doesn't hold of it, for the report."""
        return [RecordLine(outcome=self.outcome)]

    def _killed(self, number: int) -> None:
        """A signal that comes before torchrun handles signals ends the process like any other."""
        if self.stopped(number):
            self.outcome = structs.replace(self.outcome, exit_code=128 + number)

    def _publish(self) -> None:
        if self._path is None:
            return
        try:
            write_atomically(self._path, encode(self.outcome))
        except OSError:
            pass  # status lacks it, the report will have it


class _Failures(logging.Handler):
    """Takes log records of failed attempts; a record of an unexpected form is ignored."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(logging.ERROR)
        self._ending = ending

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg != ATTEMPT_FAILED or not isinstance(record.args, tuple):
            return
        exit_code, local_rank, *_ = record.args
        if isinstance(exit_code, int) and isinstance(local_rank, int) and local_rank >= 0:
            self._ending.attempt_failed(local_rank, exit_code)


def first_signal(error: SignalException) -> int:
    """The signal that torchrun was already ending for when others came: each of those raises
    another exception while the previous one is handled."""
    first, seen = error, {id(error)}
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, SignalException):
            first = current
        current = current.__context__
        if id(current) in seen:
            break
        seen.add(id(current))
    return int(first.sigval)


def _failure(failure: ProcessFailure, rank: int, attempt: int) -> Failure:
    return Failure(
        attempt=attempt,
        rank=rank,
        local_rank=failure.local_rank,
        exit_code=failure.exitcode,
        text=_last_line(failure.message),
    )


def _last_line(message: object) -> str:
    """The exception of a worker that has left one."""
    text = message.get("message", "") if isinstance(message, dict) else message
    lines = text.strip().splitlines() if isinstance(text, str) else []
    last = lines[-1].strip() if lines else ""
    return "" if last.startswith(NO_WORDS) else last[:MAX_WORDS]
