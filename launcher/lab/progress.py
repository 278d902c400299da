"""The progress of a lab's job, from its first host's run directory."""

from __future__ import annotations

from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.run.progress import Progress
from trainmesh.rundir import RunDir

__all__ = ["JobProgress"]


class JobProgress:
    """What ``trainmesh launch`` shows of a job, once for all hosts.

    Args:
        lab: Where the job runs.
        mode: ``--progress``'s: ``auto``, ``on`` or ``off``.
    """

    def __init__(self, lab: Lab, mode: str) -> None:
        self._runs = lab.runs_directory(lab.hosts[0].name)
        self._mode = mode
        self._progress: Progress | None = None

    def tick(self) -> None:
        """Begin to show the progress, as soon as there is a run directory."""
        if self._progress is None and self._mode != "off":
            for owner in self._runs.glob("trainmesh/*/owner.json"):
                self._progress = Progress(RunDir(owner.parent), self._mode)
                self._progress.start()
                break

    def close(self) -> None:
        """Show what is new, and end."""
        if self._progress is not None:
            self._progress.stop()
