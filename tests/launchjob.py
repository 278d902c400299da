"""Run ``trainmesh launch`` (or plain torchrun) as a user would, and see what it leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parent.parent
JOBS = Path(__file__).parent / "jobs"
LAUNCH = [sys.executable, "-m", "trainmesh", "launch"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MARKER = "TRAINMESH_TEST_MARKER"
Value = TypeVar("Value")


class Place:
    """A short private directory for everything temporary, and a mark on every process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINMESH")},
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(path),
            "XDG_RUNTIME_DIR": str(path),
            "XDG_CACHE_HOME": str(path),
            MARKER: path.name,
        }

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env={**self.environment, **env},
            cwd=self.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *command: str, stdin: str = "", timeout_s: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, **env)
        out, err = process.communicate(stdin, timeout=timeout_s)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def processes(self, word: str = "") -> dict[int, str]:
        """Command lines of the processes that were started from here and contain ``word``."""
        mark = f"{MARKER}={self.path.name}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if word in line:
                        found[int(entry.name)] = line
            except OSError:
                continue
        return found

    def files(self) -> list[str]:
        """What is left of run directories and of torchrun's temporary ones, sockets included."""
        folders = [*self.path.glob("trainmesh/*"), *self.path.glob("torchelastic_*")]
        return sorted(str(folder.relative_to(self.path)) for folder in folders)


@contextmanager
def place() -> Iterator[Place]:
    """A Place; at its end every process that was started from it is killed."""
    here = Place(Path(tempfile.mkdtemp(prefix="tm-")))
    try:
        yield here
    finally:
        for pid in here.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(here.path, ignore_errors=True)


def wait_for(what: Callable[[], Value | None], *, timeout_s: float = 40) -> Value:
    """The first true value of ``what``."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)
    return value
