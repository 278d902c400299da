"""Reads the health of the GPUs that local endpoints run on, every few seconds on its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from trainmesh.errors import TrainmeshError
from trainmesh.serving.config.types import Config
from trainmesh.serving.signals.gpu import Derate, GpuReader, derate, worst

__all__ = ["GpuWatch"]

EVERY_S = 2.0


class GpuWatch:
    """A GPU in trouble can delay the driver's answers for long, so nothing waits for the thread;
    its last report counts."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._gpus: dict[str, tuple[int, ...]] = {}
        self._known: dict[int, Derate] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def update(self, config: Config) -> None:
        """Watch the GPUs that endpoints of ``config`` name; without any there is no thread."""
        self._gpus = {
            endpoint.url: endpoint.gpus
            for model in config.models.values()
            for endpoint in model.endpoints
            if endpoint.gpus
        }
        if self._gpus and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
            self._thread.start()

    def derates(self) -> dict[str, Derate]:
        """By endpoint URL; only those of which something is known."""
        known = self._known
        return {
            url: worst(known[gpu] for gpu in gpus if gpu in known)
            for url, gpus in self._gpus.items()
            if any(gpu in known for gpu in gpus)
        }

    async def close(self) -> None:
        """The thread ends after the driver's next answer; it is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        try:
            with GpuReader() as reader:
                while not self._stop.is_set():
                    wanted = {gpu for gpus in self._gpus.values() for gpu in gpus}
                    self._known = {gpu: derate(reader.read(gpu)) for gpu in sorted(wanted)}
                    self._stop.wait(EVERY_S)
        except TrainmeshError as error:
            self._log(str(error))
