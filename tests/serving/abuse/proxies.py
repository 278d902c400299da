"""HAProxy, nginx and a backend that writes down the bytes it gets."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.serving.abuse.framing import Ambiguous, Incomplete, read_requests
from tests.serving.tap import LoopThread, close_server, free_port

__all__ = ["Backend", "backend", "haproxy", "need_proxy", "nginx"]

ANSWER = b'{"object":"chat.completion","choices":[]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
LINGER_S = 0.3
UNPACKED = Path(sys.prefix) / "debian"


class Backend:
    """Answers the first request of each connection, listens for bytes that nobody should send
    after it, and closes. ``received`` has what came over each connection."""

    def __init__(self, thread: LoopThread, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[bytearray] = []
        self._thread = thread
        self._server = thread.run(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._thread.run(close_server(self._server))

    def of(self, mark: bytes) -> list[bytes]:
        """What came over the connections that saw ``mark``."""
        return [bytes(each) for each in self.received if mark in each]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = bytearray()
        self.received.append(received)
        answered = False
        with suppress(OSError, TimeoutError):
            while True:
                async with asyncio.timeout(LINGER_S if answered else 30):
                    data = await reader.read(65536)
                if not data:
                    break
                received += data
                if not answered and _complete(bytes(received)):
                    answered = True
                    writer.write(HEAD % len(ANSWER) + b"connection: close\r\n\r\n" + ANSWER)
                    await writer.drain()
        writer.transport.abort() if not answered else writer.close()


def _complete(data: bytes) -> bool:
    try:
        return bool(read_requests(data))
    except Incomplete:
        return False
    except Ambiguous:
        return True


@contextmanager
def backend(thread: LoopThread, tls: ssl.SSLContext | None = None) -> Iterator[Backend]:
    made = Backend(thread, tls)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def nginx(folder: Path, backend_port: int, *, upgrades: bool = False) -> Iterator[int]:
    """nginx before a backend; its port. ``upgrades``: it passes offers to upgrade on, as many
    configurations do, over connections to the backend that all clients share."""
    upgrade = "Upgrade $http_upgrade; proxy_set_header Connection upgrade"
    passed = upgrade if upgrades else 'Connection ""'
    port = free_port()
    temporary = "\n".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{ worker_connections 1024; }}
        http {{ access_log off; {temporary}
            upstream one {{ server 127.0.0.1:{backend_port}; keepalive 16; }}
            server {{ listen 127.0.0.1:{port};
                location / {{ proxy_pass http://one; proxy_http_version 1.1;
                    proxy_set_header {passed}; proxy_next_upstream off; }} }} }}
    """)
    with _running("nginx", "-p", str(folder), "-c", str(config), port=port):
        yield port


@contextmanager
def haproxy(folder: Path, backend_port: int) -> Iterator[int]:
    """HAProxy before a backend; its port."""
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 3s
    timeout server 3s
    timeout http-request 3s
listen one
    bind 127.0.0.1:{port}
    server b 127.0.0.1:{backend_port}
""")
    with _running("haproxy", "-db", "-q", "-f", str(config), port=port):
        yield port


def need_proxy(program: str) -> None:
    """Skip where it isn't here."""
    if not _reachable(program):
        pytest.skip(f"needs {program}: make setup unpacks it where apt-get finds it; or install it")


def _reachable(program: str) -> str | None:
    """Where it is: unpacked by ``make setup``, or installed."""
    return shutil.which(program, path=f"{UNPACKED}/usr/sbin:/usr/local/sbin:/usr/sbin:/usr/bin")


@contextmanager
def _running(program: str, *arguments: str, port: int) -> Iterator[None]:
    path = _reachable(program)
    assert path, f"{program} is not installed"
    libraries = UNPACKED / "usr/lib" / f"{os.uname().machine}-linux-gnu"
    process = subprocess.Popen(
        [path, *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, f"it ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)
