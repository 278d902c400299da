"""One launch from start to end. Whatever ends the workers, nothing of ours is left behind."""

from __future__ import annotations

import os
import resource
import secrets
import threading
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs
from torch.distributed.elastic.multiprocessing import SignalException

from trainmesh.console import say
from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.launcher.run import asked, leftovers, signals, torchrun
from trainmesh.launcher.run.outcome import Ending
from trainmesh.launcher.run.settings import (
    LaunchSettings,
    python_path,
    services,
    worker_environment,
)
from trainmesh.launcher.run.supervisor import Supervisor
from trainmesh.launcher.run.troubles import Troubles
from trainmesh.rundir import (
    RunDir,
    RunInfo,
)
from trainmesh.types import RecordLine

__all__ = ["run"]

PROGRESS_STOP_S = 2.0
"""For its thread, which may wait for a terminal."""
LEAST_OPEN_FILES = 256
"""etcd does not start with 150 or fewer; the launcher holds some 20 of its own for us, beside what
torchrun takes for each worker."""
MARK = "TRAINMESH_WORKERS_OF"
"""A variable of the workers by which the launcher knows them."""


def run(args: Namespace, settings: LaunchSettings) -> int:
    """Start the control plane in the background, run torchrun, end and remove everything. If the
    control plane can't start, a message says why, and training goes on without it.

    Returns:
        Torchrun's exit code.
    """
    ending = Ending(is_one_node=settings.meeting is None)
    try:
        with signals.raising(), ExitStack() as stack:
            plane = _control_plane(settings, stack)
            note = plane.run_dir.note_logs if plane is not None else _forget
            logs = stack.enter_context(leftovers.log_directory(args.log_dir, note))
            args = Namespace(**{**vars(args), "log_dir": logs})
            if plane is None:
                return _run_workers(args, worker_environment(settings, None), ending)
            ending.keep_at(plane.run_dir.outcome)
            return _run_measured(args, settings, plane, ending)
    except SignalException as error:  # after torchrun's end, and before we took its handlers away
        return torchrun.stopped(error, ending)


@dataclass(frozen=True)
class _ControlPlane:
    run_dir: RunDir
    supervisor: Supervisor
    troubles: Troubles


def _control_plane(settings: LaunchSettings, stack: ExitStack) -> _ControlPlane | None:
    """The launch's run directory and the processes that will work in it. None, with a message, if
    they can't be had."""
    try:
        _check_open_files()
        return stack.enter_context(_run_directory(settings))
    except (ConfigError, OSError) as error:
        say(f"warning: {error}; training goes on as under torchrun, without plans and a report")
        return None


def _check_open_files() -> None:
    """If a process may have only few files open, torchrun and its workers need all of them.

    Raises:
        ConfigError: there are too few for the control plane.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < LEAST_OPEN_FILES:
        raise ConfigError(
            f"only {limit} files may be open here (ulimit -n), and the control plane wants "
            f"{LEAST_OPEN_FILES}"
        )


def _run_measured(
    args: Namespace, settings: LaunchSettings, plane: _ControlPlane, ending: Ending
) -> int:
    run_dir = plane.run_dir
    progress = _ProgressThread(run_dir, args.progress)
    try:
        plane.supervisor.start()
        progress.start()
        code = _run_workers(args, worker_environment(settings, run_dir), ending)
        if code == 0:
            _say_untouched(run_dir)
        return code
    except BaseException as error:
        ending.raised(error)
        raise
    finally:
        signals.hold()
        progress.stop()
        plane.supervisor.stop()
        for text in asked.unmet_lines(settings, run_dir.status):
            if text not in progress.warned:
                say(text)
        if args.report is not None:
            _write_report(run_dir, [*plane.troubles.lines(), *ending.lines()], args.report)


def _run_workers(args: Namespace, environment: dict[str, str], ending: Ending) -> int:
    marker = f"{MARK}={secrets.token_hex(8)}"
    added = {**environment, **dict([marker.split("=")]), "PYTHONPATH": python_path()}
    try:
        signals.check()
        with _environment(added):
            return torchrun.run(args, ending)
    finally:
        signals.hold()
        leftovers.kill_workers(marker)


def _say_untouched(run_dir: RunDir) -> None:
    """Where it is so of the whole launch: a process may train below the one that ends last."""
    if run_dir.unseen.exists() and not run_dir.seen.exists():
        say(
            "the script never communicated through DistributedDataParallel or FSDP2, or only "
            "in a Python that ignores PYTHONPATH; it ran untouched"
        )


@contextmanager
def _run_directory(settings: LaunchSettings) -> Iterator[_ControlPlane]:
    info = RunInfo(
        job=settings.job,
        pid=os.getpid(),
        etcd=settings.etcd or "",
        created_unix_s=time.time(),
    )
    with ExitStack() as stack:
        with signals.deferring():
            run_dir = RunDir.create(info)
            stack.callback(run_dir.remove)
        url, started = services(settings, run_dir)
        run_dir.publish(structs.replace(info, etcd=url))
        troubles = Troubles(run_dir.troubles, say)
        supervisor = Supervisor(
            started, RunDir.sweep, troubles, lambda: _restore(run_dir, troubles)
        )
        yield _ControlPlane(run_dir, supervisor, troubles)


def _restore(run_dir: RunDir, troubles: Troubles) -> bool:
    """Make the run directory again if it is gone; returns whether it was."""
    try:
        gone = run_dir.restore()
    except OSError:
        return False  # once a second again; the processes that miss it say so
    if gone:
        troubles.warn(
            f"somebody has removed {run_dir.path}; it was made again, and what was measured before "
            "is lost"
        )
    return gone


def _forget(path: str) -> None:
    """There is no run directory in which to keep ``path``."""


@contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """``added`` in this process's environment, from where torchrun's workers inherit it."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _ProgressThread:
    """The live line, imported and drawn in a separate thread, so that workers don't wait for it."""

    def __init__(self, run_dir: RunDir, mode: str) -> None:
        self._run_dir = run_dir
        self._mode = mode
        self._over = threading.Event()
        self.warned: Collection[str] = ()
        """What it has shown of the job's warnings."""
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def start(self) -> None:
        if self._mode != "off":
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(PROGRESS_STOP_S)

    def _show(self) -> None:
        from trainmesh.launcher.run.progress import Progress

        progress = Progress(self._run_dir, self._mode)
        self.warned = progress.warned
        progress.start()
        self._over.wait()
        progress.stop()


def _write_report(run_dir: RunDir, told: Sequence[RecordLine], directory: Path) -> None:
    """A report that can't be written is no reason for a finished training run to fail."""
    from trainmesh.launcher.report.report import write_report

    try:
        status = run_dir.read_status()
        write_report(run_dir.record, directory, told, status.num_steps if status else 0)
    except (OSError, TrainmeshError) as error:
        say(f"warning: no report in {directory}: {error}")
