"""The two C programs, engines without a model (``Mock``) and the load generator (``Load``), each
compiled once and run on the second CPU, so that a router has the first one for itself."""

import contextlib
import hashlib
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from benchmarks.serving.peers import CACHE

__all__ = [
    "LOAD_CPU",
    "ROUTER_CPU",
    "Load",
    "Measured",
    "Mock",
    "Pem",
    "Times",
    "certificate",
    "compiled",
    "free_port",
    "pinned",
]

HERE = Path(__file__).parent
PROGRAMS = {"mock": ("mock.c", "mock_pages.c"), "load": ("load.c",)}
CPUS = sorted(os.sched_getaffinity(0))
ROUTER_CPU = CPUS[0]
LOAD_CPU = CPUS[min(1, len(CPUS) - 1)]
SPARE_S = 60.0
"""How much longer than it should a load generator may take before it counts as stuck."""


def pinned(cpu: int, argv: Sequence[str]) -> list[str]:
    """The command, on one CPU."""
    return ["taskset", "--cpu-list", str(cpu), *argv]


def compiled(name: str) -> Path:
    """The program made from the C sources beside this file; made again when they change."""
    sources = [*sorted(HERE.glob("*.c")), *sorted(HERE.glob("*.h"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = CACHE / "programs"
    program = folder / f"{name}-{digest}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = program.with_suffix(f".{os.getpid()}")
        parts = [str(HERE / part) for part in PROGRAMS[name]]
        libraries = ["-lssl", "-lcrypto", "-lm"] if name == "load" else []
        subprocess.run(["gcc", "-O2", "-o", str(made), *parts, *libraries], check=True)
        made.rename(program)
    return program


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Pem:
    """A certificate for localhost that signs itself."""

    certificate: Path
    key: Path


def certificate(folder: Path) -> Pem:
    """A new one, with its key beside it as HAProxy wants it. P-256, as most servers use today."""
    pem = Pem(folder / "localhost.pem", folder / "localhost.pem.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "30", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(pem.key), "-out", str(pem.certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return pem


def _options(named: Mapping[str, object]) -> list[str]:
    argv = []
    for name, value in named.items():
        if value is True:
            argv.append(f"--{name.replace('_', '-')}")
        elif value is not False:
            argv += [f"--{name.replace('_', '-')}", str(value)]
    return argv


class Mock:
    """One engine, ended with the ``with`` block. Options as mock.c says, and ``netns``, the
    network namespace that it runs in."""

    def __init__(self, name: str, options: Mapping[str, object]):
        named = {"host": "127.0.0.1", "port": free_port(), "name": name, **options}
        netns = named.pop("netns", "")
        self._inside = ["ip", "netns", "exec", str(netns)] if netns else []
        self._host = str(named["host"])
        self.port = int(str(named["port"]))
        self._argv = _options(named)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Starts it, again after a ``kill``, and waits until it answers."""
        self._process = subprocess.Popen(
            [*self._inside, *pinned(LOAD_CPU, [str(compiled("mock")), *self._argv])]
        )
        deadline = time.monotonic() + 5
        while True:
            try:
                self.stats()
                return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.01)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def control(self, **values: float) -> None:
        """Changes how it behaves from now on."""
        self._get("/control?" + "&".join(f"{name}={value}" for name, value in values.items()))

    def stats(self) -> dict[str, int]:
        """Its counters: started, served, aborted, refused, waiting, running, ..."""
        counters: dict[str, int] = json.loads(self._get("/stats"))
        return counters

    def _get(self, path: str) -> bytes:
        with contextlib.closing(
            http.client.HTTPConnection(self._host, self.port, timeout=5)
        ) as connection:
            connection.request("GET", path)
            return connection.getresponse().read()


class Times(msgspec.Struct, frozen=True):
    """Milliseconds; nan where there are none."""

    n: int
    mean: float = math.nan
    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan
    p999: float = math.nan
    max: float = math.nan


class Measured(msgspec.Struct, frozen=True):
    """What load.c prints; see there."""

    seconds: float
    sent: int
    answered: int
    per_s: float
    tokens_per_s: float
    total_ms: Times
    first_byte_ms: Times
    gap_ms: Times
    failed: int
    status: int
    last_status: int
    reset: int
    cut: int
    refused: int
    timeout: int
    truncated: int
    error_event: int
    unfinished: int
    """Open loop: due, and without an answer at the end; not in ``failed``."""
    timeline: list[tuple[int, int]]
    """Answered and failed, for each tenth of a second."""

    @property
    def retriable(self) -> int:
        """Failed without a byte of an answer: another endpoint could have answered."""
        return self.status + self.timeout + self.reset - self.cut

    @property
    def broken(self) -> int:
        """Answers that began and did not come to their end."""
        return self.cut + self.truncated + self.error_event


class Load:
    """A load generator against one port; options as load.c says."""

    def __init__(self, port: int, *, seconds: float, **options: object):
        self._most_s = seconds + SPARE_S
        argv = _options({"port": port, "seconds": seconds} | options)
        self._process = subprocess.Popen(
            pinned(LOAD_CPU, [str(compiled("load")), *argv]), stdout=subprocess.PIPE
        )

    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> Measured:
        """Waits for it."""
        try:
            printed, _ = self._process.communicate(timeout=self._most_s)
        finally:
            self.stop()
        return msgspec.json.decode(printed, type=Measured)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@contextlib.contextmanager
def slow_link(rate_bit_per_s: int) -> Iterator[tuple[str, str]]:
    """A network namespace behind a link of that rate in both directions (token bucket): its name
    and the address inside. Needs root and ``ip`` and ``tc``.

    Raises:
        OSError: no such namespace can be made here.
    """
    name, outer, inner = f"tmbench{os.getpid()}", f"tmb{os.getpid() % 100000}o", "tmbi"
    if os.geteuid() or not shutil.which("tc"):
        raise OSError("a slow link needs root, ip and tc")
    shape = f"root tbf rate {rate_bit_per_s} burst 16kb latency 2s".split()
    build = [
        f"ip netns add {name}",
        f"ip link add {outer} type veth peer name {inner} netns {name}",
        f"ip addr add 10.254.77.1/30 dev {outer}",
        f"ip link set {outer} up",
        f"ip -n {name} addr add 10.254.77.2/30 dev {inner}",
        f"ip -n {name} link set {inner} up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for line in build:
            subprocess.run(line.split(), check=True, capture_output=True)
        for inside, device in ([], outer), (["ip", "netns", "exec", name], inner):
            argv = [*inside, "tc", "qdisc", "add", "dev", device, *shape]
            subprocess.run(argv, check=True, capture_output=True)
        yield name, "10.254.77.2"
    except subprocess.CalledProcessError as error:
        raise OSError(f"{' '.join(error.cmd)}: {error.stderr.decode().strip()}") from error
    finally:
        for line in (f"ip link del {outer}", f"ip netns del {name}"):
            subprocess.run(line.split(), check=False, capture_output=True)
