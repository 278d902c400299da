"""One launch from begin to end: whatever ends the workers, nothing of ours is left behind."""

from __future__ import annotations

import os
import threading
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from msgspec import structs
from torch.distributed.elastic.multiprocessing import SignalException

from trainmesh.errors import TrainmeshError
from trainmesh.launcher import asked, leftovers, signals, torchrun
from trainmesh.launcher.settings import LaunchSettings, services, worker_environment
from trainmesh.launcher.supervisor import Supervisor, say
from trainmesh.rundir import (
    ENV_RUN_DIR,
    RunDir,
    RunInfo,
    sweep,
)

__all__ = ["run"]

PROGRESS_STOP_S = 2.0


def run(args: Namespace, settings: LaunchSettings) -> int:
    """Start the control plane in the background, run torchrun, end and remove everything.

    Returns:
        Torchrun's exit code.
    """
    try:
        with (
            signals.raising(),
            _run_directory(settings) as (run_dir, supervisor),
            leftovers.log_directory(args.log_dir, run_dir.note_logs) as logs,
        ):
            return _run_workers(
                Namespace(**{**vars(args), "log_dir": logs}), settings, run_dir, supervisor
            )
    except SignalException as error:  # after torchrun's end, and before we took its handlers away
        return torchrun.stopped(error)


def _run_workers(
    args: Namespace, settings: LaunchSettings, run_dir: RunDir, supervisor: Supervisor
) -> int:
    progress = _ProgressThread(run_dir, args.progress)
    environment = worker_environment(settings, run_dir)
    if args.no_python:
        path = [str(torchrun.SITE), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    try:
        supervisor.start()
        progress.start()
        signals.check()
        with _environment(environment):
            return torchrun.run(args)
    finally:
        signals.hold()
        progress.stop()
        supervisor.stop()
        leftovers.kill_workers(f"{ENV_RUN_DIR}={run_dir.path}")
        for text in asked.unmet_lines(settings, run_dir.status):
            if text not in progress.warned:
                say(text)
        if args.report is not None:
            _write_report(run_dir.record, args.report)


@contextmanager
def _run_directory(settings: LaunchSettings) -> Iterator[tuple[RunDir, Supervisor]]:
    """The launch's run directory and the supervisor of the processes that work in it."""
    info = RunInfo(
        job=settings.job,
        pid=os.getpid(),
        etcd=settings.etcd or "",
        created_unix_s=time.time(),
    )
    run_dir = RunDir.create(info)
    try:
        url, started = services(settings, run_dir)
        run_dir.publish(structs.replace(info, etcd=url))
        yield run_dir, Supervisor(started, prepare=sweep)
    finally:
        run_dir.remove()


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
    """The live line, imported and drawn in a thread of its own: workers don't wait for it."""

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
        from trainmesh.launcher.progress import Progress

        progress = Progress(self._run_dir, self._mode)
        self.warned = progress.warned
        progress.start()
        self._over.wait()
        progress.stop()


def _write_report(record: Path, directory: Path) -> None:
    """A report that can't be written is no reason for a finished training run to fail."""
    from trainmesh.launcher.report import write_report

    try:
        write_report(record, directory)
    except (OSError, TrainmeshError) as error:
        say(f"warning: no report in {directory}: {error}")
