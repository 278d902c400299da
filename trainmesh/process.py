"""What the agent and coordinator processes have in common: environment, end, store."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from trainmesh.console import note, say_error
from trainmesh.errors import ConfigError, StoreError, TrainmeshError
from trainmesh.job_settings import ENV_SETTINGS, JobSettings
from trainmesh.process_health import STORE, HealthReporter
from trainmesh.rundir import ENV_RUN_DIR, RunDir
from trainmesh.store.address import security_from_environment
from trainmesh.store.base import Store
from trainmesh.store.claim import Claim, claim_from
from trainmesh.store.claiming import hold
from trainmesh.store.etcd import connect
from trainmesh.wire import decode

__all__ = ["ControlEnvironment", "Stop", "run_process", "run_with_store"]

MAX_BACKOFF_S = 3.0
"""Between two tries to reach the store: after an outage we are back this much later at most."""
CHECK_TTL_S = 5
"""Of a lease that is given back at once."""
LOOK_AGAIN_S = 10.0
"""How often a process reads the hint's key even if its watch reports nothing: a plan must not
depend on one event."""


@dataclass(frozen=True)
class ControlEnvironment:
    """The settings that the launcher passes to its processes by environment variables."""

    run: RunDir
    job: str
    node: str
    etcd: str
    insecure_etcd: bool
    topology: Path | None
    settings: JobSettings
    claim: Claim

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> ControlEnvironment:
        """Read and validate ``TRAINMESH_*``.

        Raises:
            ConfigError: a variable is missing or has a wrong value.
            WireError: the claim is damaged, or the settings are.
        """
        topology = environ.get("TRAINMESH_TOPOLOGY")
        settings = environ.get(ENV_SETTINGS, "").encode()
        return cls(
            run=RunDir(Path(_required(environ, ENV_RUN_DIR))),
            job=_required(environ, "TRAINMESH_JOB"),
            node=_required(environ, "TRAINMESH_NODE"),
            etcd=_required(environ, "TRAINMESH_ETCD"),
            insecure_etcd=environ.get("TRAINMESH_INSECURE_ETCD") == "1",
            topology=Path(topology) if topology else None,
            settings=decode(settings or b"{}", JobSettings, what=ENV_SETTINGS),
            claim=claim_from(environ, _required(environ, "TRAINMESH_JOB")),
        )


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name)
    if not value:
        raise ConfigError(f"{name} is not set; this process is started by trainmesh launch")
    return value


class Stop:
    """The process is to end: on SIGTERM, on SIGINT, or when the launcher is gone (its end of
    our standard input closes). A context manager; leaves the signal handlers installed."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch_stdin, name="stdin", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.set()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._event.wait(timeout_s)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.set()

    def _watch_stdin(self) -> None:
        try:
            while os.read(0, 64):
                pass
        except OSError:
            pass
        self.set()


def run_with_store(
    environment: ControlEnvironment,
    stop: Stop,
    health: HealthReporter,
    session: Callable[[Store], None],
) -> None:
    """Call ``session`` with a connected store, again with a new one whenever it fails, until
    ``stop``. Tells the launcher while the store can't be used, and the log when that changes."""
    backoff_s, failing = 0.1, False
    while True:
        try:
            store = connect(
                environment.etcd,
                insecure=environment.insecure_etcd,
                **security_from_environment(),
            )
            try:
                store.lease(CHECK_TTL_S).close()  # a write: an etcd that is full still reads
                hold(store, environment.claim)
                if failing:
                    note("the store answers again")
                backoff_s, failing = 0.1, False
                health.set(STORE, "")
                session(store)
            finally:
                store.close()
        except StoreError as error:
            if not failing:
                note(f"store: {error}")
            failing = True
            health.set(STORE, f"{error}; training goes on, without new plans")
        if stop.wait(backoff_s * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
            return
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


def run_process(body: Callable[[ControlEnvironment, Stop, HealthReporter], None]) -> int:
    """The life of a control process: ``body``, until the launcher ends it.

    Returns:
        The exit code. What has ended it early is one line on stderr.
    """
    try:
        environment = ControlEnvironment.read()
        with Stop() as stop:
            body(environment, stop, HealthReporter())
    except (TrainmeshError, OSError) as error:
        return say_error(error)
    return 0
