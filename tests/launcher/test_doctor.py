"""``trainmesh doctor``: each finding, and what it says to do."""

import json
import os
import socket
from pathlib import Path

import pytest

from trainmesh.launcher.cli import main
from trainmesh.launcher.doctor import checks as doctor
from trainmesh.launcher.doctor.checks import Check, CheckState
from trainmesh.launcher.doctor.interfaces import Interface, Reach

GOOD = {"torch": "2.13.0+cpu", "gloo": True, "nccl": False, "cuda_devices": 0, "hooked_buckets": 1}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture(autouse=True)
def own_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINMESH_ETCD", raising=False)


@pytest.mark.starts
def test_this_machine_can_run_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert list(checks) == [
        *("python", "torch", "gloo", "nccl", "comm hook", "etcd client", "etcd server"),
        *("interface", "gpus", "run directory", "shared memory", "open files", "datagrams", "cpus"),
    ]
    assert set(checks["python"]) == {"name", "state", "text", "fix"}
    assert checks["comm hook"]["state"] == "ok"
    assert checks["etcd server"]["text"].startswith("3.")


@pytest.mark.starts
def test_a_fail_is_told_with_its_cure_and_the_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINMESH_ETCD", "http://127.0.0.1:1")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "fail  etcd server" in shown
    assert "-> start etcd 3.4 or newer there" in shown
    assert shown.endswith("1 problem to solve\n")


def test_python() -> None:
    assert doctor.python_check((3, 11, 2)).state is CheckState.OK
    old = doctor.python_check((3, 10, 9))
    assert (old.state, old.text) == (CheckState.FAIL, "3.10.9")


def test_torch_facts() -> None:
    found = by_name(doctor.torch_checks(GOOD))
    assert {name: check.state for name, check in found.items()} == dict.fromkeys(
        ("torch", "gloo", "nccl", "comm hook"), CheckState.OK
    )
    assert "none" in found["nccl"].text


@pytest.mark.parametrize(
    ("facts", "name", "state"),
    [
        ({"error": "No module named 'torch'"}, "torch", CheckState.FAIL),
        (GOOD | {"torch": "2.4.1"}, "torch", CheckState.WARN),
        (GOOD | {"torch": "3.0.0"}, "torch", CheckState.WARN),
        (GOOD | {"gloo": False}, "gloo", CheckState.FAIL),
        (GOOD | {"cuda_devices": 2}, "nccl", CheckState.WARN),
        (GOOD | {"hooked_buckets": 0}, "comm hook", CheckState.FAIL),
        (
            {**GOOD, "hooked_buckets": None, "hook_error": "TypeError: no"},
            "comm hook",
            CheckState.FAIL,
        ),
    ],
)
def test_what_is_wrong_with_torch(facts: dict[str, object], name: str, state: CheckState) -> None:
    check = by_name(doctor.torch_checks(facts))[name]
    assert check.state is state
    assert check.fix


@pytest.mark.starts
def test_a_probe_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('broken torch')")
    facts = doctor.run_probe({**os.environ, "PYTHONPATH": str(tmp_path)})
    assert facts == {"error": "ImportError: broken torch"}


ETH0 = Interface("eth0", Reach.DEVICE, "Ethernet", "10.1.2.3", 25_000, True)
LO = Interface("lo", Reach.NOWHERE, "loopback", "127.0.0.1")
IFB0 = Interface("ifb0", Reach.NOWHERE, "down")
DOCKER0 = Interface("docker0", Reach.NOWHERE, "a bridge inside this machine", "172.17.0.1")
EMPTY = Interface("ens9", Reach.NOWHERE, "no address")
MACHINE = [LO, IFB0, DOCKER0, EMPTY, ETH0]


@pytest.mark.parametrize(
    ("chosen", "state", "says"),
    [
        ("eth0", CheckState.OK, "eth0 (GLOO_SOCKET_IFNAME)"),
        ("lo", CheckState.OK, "GLOO_SOCKET_IFNAME=lo: loopback; reaches this machine only"),
        (
            "docker0",
            CheckState.OK,
            "GLOO_SOCKET_IFNAME=docker0: a bridge inside this machine; reaches",
        ),
        ("nosuch0", CheckState.FAIL, "GLOO_SOCKET_IFNAME=nosuch0, but there is no nosuch0"),
        (
            "eth0,nosuch0",
            CheckState.FAIL,
            "GLOO_SOCKET_IFNAME=eth0,nosuch0, but there is no nosuch0",
        ),
        ("ens9", CheckState.FAIL, "GLOO_SOCKET_IFNAME=ens9, but ens9 has no address"),
        ("^lo,docker", CheckState.FAIL, "GLOO_SOCKET_IFNAME=^lo,docker: gloo takes names; ^ and ="),
    ],
)
def test_the_interface_that_was_chosen(chosen: str, state: CheckState, says: str) -> None:
    check = doctor.interface_check({"GLOO_SOCKET_IFNAME": chosen}, MACHINE)
    assert check.state is state
    assert check.text.startswith(says)
    if state is CheckState.FAIL:
        assert check.fix.startswith("set it to eth0 (Ethernet, 10.1.2.3, 25 Gbit/s, default route)")


@pytest.mark.parametrize(
    ("address", "state"),
    [
        ("127.0.1.1", CheckState.OK),
        ("10.1.2.3", CheckState.OK),
        ("fd00::7", CheckState.OK),
        ("172.17.0.1", CheckState.WARN),
        (None, CheckState.WARN),
    ],
)
def test_the_interface_that_the_host_name_leads_to(
    monkeypatch: pytest.MonkeyPatch, address: str | None, state: CheckState
) -> None:
    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if address is None:
            raise socket.gaierror("unknown")
        return [(None, None, None, "", (address, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    check = doctor.interface_check({}, MACHINE)
    assert check.state is state
    if address in ("10.1.2.3", "fd00::7"):
        assert not check.fix
    else:
        use, _, left_out = check.fix.partition("; not ")
        assert use.endswith(
            "set GLOO_SOCKET_IFNAME to eth0 (Ethernet, 10.1.2.3, 25 Gbit/s, default route)"
        )
        assert left_out.startswith("lo (loopback), ifb0 (down), docker0 (a bridge inside this")


def test_a_machine_whose_interfaces_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    check = doctor.interface_check({}, [LO, IFB0])
    assert check.fix == (
        "for jobs over several machines set GLOO_SOCKET_IFNAME to one that leads to them: this "
        "machine has none; not lo (loopback), ifb0 (down)"
    )


@pytest.mark.starts
def test_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert doctor.run_directory_check().state is CheckState.OK
    assert list((tmp_path / "trainmesh").iterdir()) == []
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert doctor.run_directory_check().state is CheckState.OK  # longer than a socket path may be
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "trainmesh").write_text("in the way")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    assert doctor.run_directory_check().state is CheckState.FAIL


def test_small_limits_are_warned_of(tmp_path: Path) -> None:
    limit = tmp_path / "qlen"
    assert doctor.datagram_check(limit).state is CheckState.WARN
    limit.write_text("4\n")
    assert doctor.datagram_check(limit).state is CheckState.WARN
    limit.write_text("512\n")
    assert doctor.datagram_check(limit).state is CheckState.OK
    assert doctor.shared_memory_check(tmp_path / "none").state is CheckState.WARN


def test_more_ranks_than_cpus_are_warned_of() -> None:
    assert doctor.cpu_check(4, None).state is CheckState.OK
    assert doctor.cpu_check(4, 4).state is CheckState.OK
    assert doctor.cpu_check(4, 5).state is CheckState.WARN


def test_a_wrong_number_of_ranks_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--nproc-per-node", "0"]) == 2
    assert "--nproc-per-node 0" in capsys.readouterr().err
