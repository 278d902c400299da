"""Which address agents use between each other."""

import socket

import pytest

from trainmesh.errors import ConfigError
from trainmesh.probe.interface import job_address, machine_id

REMOTE = "http://192.0.2.1:2379"


def test_a_job_whose_etcd_is_on_loopback_stays_there() -> None:
    environ = {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "eth8"}
    for url in ("http://127.0.0.1:2379", "http://localhost:2379"):
        assert job_address(url, "gloo", environ) == ("lo", "127.0.0.1")
    assert job_address("https://[::1]:2379", "gloo", environ) == ("lo", "::1")


@pytest.mark.parametrize(
    ("backend", "variable", "value"),
    [
        ("gloo", "GLOO_SOCKET_IFNAME", "lo"),
        ("", "GLOO_SOCKET_IFNAME", "nothing9,lo"),
        ("nccl", "NCCL_SOCKET_IFNAME", "lo"),
        ("cpu:gloo,cuda:nccl", "NCCL_SOCKET_IFNAME", "l"),
        ("nccl", "NCCL_SOCKET_IFNAME", "=nothing9,lo"),
    ],
)
def test_the_interface_that_the_backend_is_told_to_use(
    backend: str, variable: str, value: str
) -> None:
    assert job_address(REMOTE, backend, {variable: value}) == ("lo", "127.0.0.1")


@pytest.mark.parametrize(
    ("backend", "variable", "value"),
    [
        ("gloo", "GLOO_SOCKET_IFNAME", "nothing9"),
        ("gloo", "GLOO_SOCKET_IFNAME", "l"),
        ("nccl", "NCCL_SOCKET_IFNAME", "=l"),
        ("nccl", "NCCL_SOCKET_IFNAME", "^" + ",".join(name for _, name in socket.if_nameindex())),
    ],
)
def test_an_interface_that_is_not_there_is_said(backend: str, variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}=.* no such interface"):
        job_address(REMOTE, backend, {variable: value})


def test_a_name_that_is_left_out_is_not_taken() -> None:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        pytest.skip("this machine has no interface but lo")
    try:
        found, _ = job_address(REMOTE, "nccl", {"NCCL_SOCKET_IFNAME": f"^={names[0]}"})
    except ConfigError:
        return
    assert found not in (names[0], "lo")


def test_an_etcd_that_cannot_be_found_is_said() -> None:
    with pytest.raises(ConfigError, match="no route to etcd at no-such-host.invalid"):
        job_address("http://no-such-host.invalid:2379", "gloo", {})


def test_machines_are_told_apart_by_something_that_stays() -> None:
    assert machine_id() == machine_id() != ""
