"""``trainmesh serve`` as a user starts it, in a place of its own."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

from tests.launchjob import Place, place
from tests.serving.tap import free_port

__all__ = ["RunningRouter", "ask", "running_router", "until"]

Value = TypeVar("Value")


def until(ask: Callable[[], Value | None], timeout_s: float = 20, what: str = "") -> Value:
    """The first true answer of ``ask``."""
    deadline = time.monotonic() + timeout_s
    while not (value := ask()):
        assert time.monotonic() < deadline, what or f"{ask} stayed {value!r}"
        time.sleep(0.02)
    return value


def ask(
    name: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body of the answer of the server at ``name``, host:port."""
    connection = HTTPConnection(name, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class RunningRouter:
    """A router that listens. ``log`` has its standard output and error."""

    def __init__(
        self, here: Place, port: int, process: subprocess.Popen[bytes], *, secured: bool
    ) -> None:
        self.port = port
        self.secured = secured
        self.name = f"127.0.0.1:{port}"
        self.url = f"http://{self.name}"
        self.process = process
        self._here = here

    @property
    def log(self) -> str:
        """Its whole lines: a line that is being written may be seen by half."""
        whole, newline, _ = (self._here.path / "serve.log").read_text().rpartition("\n")
        return whole + newline

    @property
    def admin(self) -> str:
        """Where its admin server listens, host:port."""
        until(lambda: "admin at http://" in self.log)
        return self.log.partition("admin at http://")[2].split()[0].strip('"}')

    def workers(self) -> list[int]:
        return sorted(self._here.processes("trainmesh.serving.proxy.worker"))

    def rss_bytes(self) -> int:
        """Memory of all workers."""
        return sum(_rss_bytes(pid) for pid in self.workers())

    def post(self, body: bytes, request_id: str = "") -> tuple[int, bytes]:
        """A chat."""
        headers = {"x-request-id": request_id} if request_id else {}
        return ask(self.name, "POST", "/v1/chat/completions", body, headers)

    def listens(self) -> bool:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.log}"
        try:
            if self.secured:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return True
            return ask(self.name, "GET", "/v1/models")[0] in (200, 401)
        except OSError:
            return False

    def rewrite(self, config: dict[str, Any]) -> None:
        """Change its serve.yaml, as an editor would."""
        new = self._here.path / "serve.yaml.new"
        new.write_text(json.dumps({"version": 1, "listen": self.name, **config}))
        new.rename(self._here.path / "serve.yaml")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def running_router(
    config: dict[str, Any],
    *,
    num_files: int | None = None,
    streams: str = "",
    env: Mapping[str, str] | None = None,
) -> Iterator[RunningRouter]:
    """``config`` is what serve.yaml says, but for the version and, unless it has one, the address
    (``127.0.0.1:PORT``). ``streams``: redirections of a shell."""
    with place() as here:
        whole = {"version": 1, "listen": f"127.0.0.1:{free_port()}", **config}
        port = int(whole["listen"].rpartition(":")[2])
        limit = f"ulimit -n {num_files}; " if num_files else ""
        shell = ["sh", "-c", f'{limit}exec "$@" {streams}', "sh"] if limit or streams else []
        file = here.path / "serve.yaml"
        file.write_text(json.dumps(whole))
        with (here.path / "serve.log").open("wb") as log:
            process = subprocess.Popen(
                [*shell, sys.executable, "-m", "trainmesh", "serve", "--config", str(file)],
                env={**here.environment, "XDG_STATE_HOME": str(here.path), **(env or {})},
                cwd=here.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        router = RunningRouter(here, port, process, secured="tls" in config)
        try:
            until(router.listens, what="the router does not listen")
            yield router
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)
