"""llama.cpp servers with a tap before each."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.serving.tap import LoopThread, Tap

__all__ = ["Replica", "three_replicas"]

SERVER = Path(__file__).parent / "llamacpp_server.py"


class Replica:
    """``url`` is the tap's, which stays the same over ``kill`` and ``heal``; ``direct`` the
    server's own."""

    def __init__(self, thread: LoopThread, model: Path, log: Path) -> None:
        self._model = model
        self._log = log
        self._process = self._start()
        self.tap = Tap(thread, self._port)

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.tap.port}"

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    @property
    def direct(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        """As by kill -9: connections reset, then refused."""
        self._end()
        self.tap.away()

    def stop(self) -> None:
        """It accepts, and says nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def heal(self) -> None:
        """Start it again, on the same port."""
        self._process = self._start()
        self.tap.upstream_port = self._port
        self.tap.listen()

    def mend(self) -> None:
        """Make it as new."""
        if self._process.returncode is not None:
            self.heal()
        self.go_on()
        self.tap.forget()

    def close(self) -> None:
        self.tap.away()
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, str(SERVER), str(self._model), "0"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"llama.cpp did not start:\n{self._log.read_text()[-2000:]}"
        self._port = urlsplit(line.strip()).port or 0
        return process


@contextmanager
def three_replicas(thread: LoopThread, model: Path, folder: Path) -> Iterator[list[Replica]]:
    made: list[Replica] = []
    try:
        for index in range(3):
            made.append(Replica(thread, model, folder / f"replica{index}.log"))
        yield made
    finally:
        for each in made:
            each.close()
