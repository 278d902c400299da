"""How each router is started, and the running one: ready, its CPU time, its memory."""

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from benchmarks.serving import dataplane, peers
from benchmarks.serving.peers import Unavailable
from benchmarks.serving.programs import ROUTER_CPU, Pem, free_port, pinned

__all__ = ["KEY", "ROUTERS", "Goal", "Router", "Running", "running"]

KEY = "sk-bench"
ROOT = Path(__file__).parent.parent.parent
COMPILED = ROOT / "build" / "compiled"
"""What scripts/compiled.sh makes."""
READY_S = 90.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Goal(StrEnum):
    """What a peer is configured for. Ours always runs with its defaults."""

    CHEAP = "cheap"
    """The policy that costs least."""
    LOAD = "load"
    """The policy that looks at load, where there is one."""
    PREFIX = "prefix"
    """The policy that looks at prefixes or sessions, where there is one."""


@dataclass(frozen=True)
class Setup:
    """What a router is started with. ``endpoints`` are host:port, ``folder`` is its own."""

    port: int
    endpoints: tuple[str, ...]
    goal: Goal
    folder: Path
    pem: Pem | None = None

    @property
    def urls(self) -> list[str]:
        return [f"http://{endpoint}" for endpoint in self.endpoints]

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True)
class Command:
    argv: Sequence[str | Path]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Router:
    """``policies``: what it is set to for a goal; ``tls``: it can serve TLS."""

    name: str
    command: Callable[[Setup], Command]
    policies: dict[Goal, str]
    tls: bool = True

    def version(self) -> str:
        return "this one" if self.name.startswith("trainmesh") else peers.version(self.name)


def _trainmesh(root: Path) -> Callable[[Setup], Command]:
    return lambda setup: _trainmesh_of(root, setup)


def _trainmesh_of(root: Path, setup: Setup) -> Command:
    endpoints = [{"url": url, "runtime": "vllm"} for url in setup.urls]
    config: dict[str, object] = {
        "version": 1,
        "listen": f"127.0.0.1:{setup.port}",
        "models": {"mock": {"endpoints": endpoints}},
        "tenants": {
            "bench": {
                "keys": [f"file:{setup.write('key', KEY)}"],
                "requests_per_s": 1e9,
                "tokens_per_s": 1e9,
            }
        },
        "ledger": {"dir": str(setup.folder / "ledger")},
    }
    (setup.folder / "key").chmod(0o600)
    if setup.pem:
        config["tls"] = {"cert": str(setup.pem.certificate), "key": str(setup.pem.key)}
    path = setup.write("serve.yaml", json.dumps(config))
    argv = [sys.executable, "-m", "trainmesh", "serve", "--config", path]
    # The working directory comes before PYTHONPATH with -m.
    return Command(["env", "-C", str(root), *argv], {"PYTHONPATH": str(root)})


def _dataplane(name: str, make: Callable[..., str], file: str) -> Callable[[Setup], Command]:
    def command(setup: Setup) -> Command:
        pem = (setup.pem.certificate, setup.pem.key) if setup.pem else None
        sessions = setup.goal is Goal.PREFIX
        text = make(setup.port, setup.endpoints, sessions=sessions, pem=pem)
        path = setup.write(file, text)
        folder = peers.home(name)
        if name == "envoy":
            options = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
            return Command([folder / "bin" / "envoy", "-c", path, *options])
        root = folder / "root" / "usr"
        env = {"LD_LIBRARY_PATH": str(root / "lib" / f"{os.uname().machine}-linux-gnu")}
        program = root / "sbin" / name
        if name == "nginx":
            return Command([program, "-p", setup.folder, "-c", path], env)
        return Command([program, "-f", path, "-db"], env)

    return command


def _rust(name: str, start: Sequence[str], policies: dict[Goal, str]) -> Callable[[Setup], Command]:
    """The three routers that descend from SGLang's share most of their options."""

    def command(setup: Setup) -> Command:
        program, *rest = start
        argv: list[str | Path] = [
            peers.home(name) / "bin" / program, *rest,
            "--host", "127.0.0.1", "--port", str(setup.port),
            "--worker-urls", *setup.urls, "--policy", policies[setup.goal],
            "--health-check-interval-secs", "1", "--health-check-timeout-secs", "1",
            "--health-failure-threshold", "2", "--health-success-threshold", "1",
            "--worker-startup-check-interval", "1",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()),
            "--log-level", "warning" if name == "vllm-router" else "warn",
        ]  # fmt: skip
        if name == "smg":
            argv += ["--load-monitor-interval", "1"]
        if setup.pem:
            argv += ["--tls-cert-path", setup.pem.certificate, "--tls-key-path", setup.pem.key]
        return Command(argv)

    return command


def _litellm(setup: Setup) -> Command:
    config = {
        "model_list": [
            {
                "model_name": "mock",
                "litellm_params": {"model": "openai/mock", "api_base": f"{u}/v1", "api_key": "x"},
            }
            for u in setup.urls
        ],
        "router_settings": {"routing_strategy": LITELLM[setup.goal], "num_retries": 2},
        "general_settings": {"master_key": KEY},
    }
    path = setup.write("litellm.yaml", json.dumps(config))
    bin_folder = peers.home("litellm") / "bin"
    argv: list[str | Path] = [
        bin_folder / "litellm", "--config", path, "--host", "127.0.0.1",
        "--port", str(setup.port), "--num_workers", "1",
    ]  # fmt: skip
    if setup.pem:
        argv += ["--ssl_certfile_path", setup.pem.certificate]
        argv += ["--ssl_keyfile_path", setup.pem.key]
    env = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        "DISABLE_ADMIN_UI": "True",
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
    }
    return Command(argv, env)


def _missing(_setup: Setup) -> Command:
    return Command([peers.home("production-stack")])  # which says why there is none


SGLANG = {Goal.CHEAP: "round_robin", Goal.LOAD: "power_of_two", Goal.PREFIX: "cache_aware"}
SMG = SGLANG | {Goal.LOAD: "least_load"}
LITELLM = {Goal.CHEAP: "simple-shuffle", Goal.LOAD: "least-busy", Goal.PREFIX: "least-busy"}
NGINX = {Goal.CHEAP: "least_conn", Goal.LOAD: "least_conn", Goal.PREFIX: "hash of session"}
HAPROXY = {Goal.CHEAP: "leastconn", Goal.LOAD: "leastconn", Goal.PREFIX: "hash of session"}
ENVOY = {Goal.CHEAP: "least_request", Goal.LOAD: "least_request", Goal.PREFIX: "maglev, session"}

ROUTERS = {
    router.name: router
    for router in (
        Router("trainmesh", _trainmesh(COMPILED), dict.fromkeys(Goal, "hybrid")),
        Router("trainmesh-py", _trainmesh(ROOT), dict.fromkeys(Goal, "hybrid")),
        Router("nginx", _dataplane("nginx", dataplane.nginx, "nginx.conf"), NGINX),
        Router("haproxy", _dataplane("haproxy", dataplane.haproxy, "haproxy.cfg"), HAPROXY),
        Router("envoy", _dataplane("envoy", dataplane.envoy, "envoy.yaml"), ENVOY),
        Router(
            "vllm-router",
            _rust("vllm-router", ("vllm-router",), SGLANG),
            SGLANG,
            tls=False,
        ),
        Router(
            "sglang-router",
            _rust("sglang-router", ("python", "-m", "sglang_router.launch_router"), SGLANG),
            SGLANG,
        ),
        Router("smg", _rust("smg", ("smg", "launch"), SMG), SMG),
        Router("litellm", _litellm, LITELLM),
        Router("production-stack", _missing, {}),
    )
}


def _tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                found += _tree(int(child))
    return found


@dataclass(frozen=True)
class Running:
    """A router that answers."""

    port: int
    pid: int
    pem: Pem | None

    def cpu_s(self) -> float:
        """CPU time of all its processes since they started."""
        ticks = 0
        for pid in _tree(self.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks * TICK_S

    def rss_bytes(self) -> int:
        pages = 0
        for pid in _tree(self.pid):
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * PAGE_BYTES


@contextlib.contextmanager
def running(
    router: Router, endpoints: Sequence[str], goal: Goal, folder: Path, pem: Pem | None = None
) -> Iterator[Running]:
    """The router, started on its CPU and answering; it is ended afterwards.

    Raises:
        Unavailable: it can't be installed, or does not come up.
    """
    own = folder / f"{router.name}-{time.monotonic_ns()}"
    own.mkdir(parents=True, mode=0o700)
    setup = Setup(free_port(), tuple(endpoints), goal, own, pem)
    command = router.command(setup)
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(
            pinned(ROUTER_CPU, [str(word) for word in command.argv]),
            env=os.environ | command.env,
            cwd=own,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_ready(process, setup)
        yield Running(setup.port, process.pid, pem)
    finally:
        _end(process)


def _wait_ready(process: "subprocess.Popen[bytes]", setup: Setup) -> None:
    deadline = time.monotonic() + READY_S
    while not _answers(setup):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = (setup.folder / "log").read_text(errors="replace").strip().splitlines()
            said = " ".join(lines[-2:])[:300] if lines else "without a word"
            raise Unavailable(f"did not come up: {said}")
        time.sleep(0.1)


def _answers(setup: Setup) -> bool:
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hello"}]})
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection = (
        http.client.HTTPSConnection(
            "localhost",
            setup.port,
            timeout=5,
            context=ssl.create_default_context(cafile=str(setup.pem.certificate)),
        )
        if setup.pem
        else http.client.HTTPConnection("127.0.0.1", setup.port, timeout=5)
    )
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    for word, wait_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, word)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            break
    with contextlib.suppress(ProcessLookupError):  # descendants that outlived it
        os.killpg(process.pid, signal.SIGKILL)
