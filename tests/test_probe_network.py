"""A probe over a real link of a known rate: two network namespaces, a veth pair, tc's tbf."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.agents import publish, start_agent, wait_for_agents
from tests.launchjob import Place, place, wait_for
from tests.needs import need, need_root
from trainmesh.errors import StoreError
from trainmesh.store.embedded import find_etcd
from trainmesh.store.etcd import EtcdStore, connect

pytestmark = [pytest.mark.root, pytest.mark.etcd]

SPACES = ("a", "b")
RATES_MBIT = {"a": 100, "b": 50}
"""What leaves each namespace over the data link."""
PAYLOAD_SHARE = 1448 / 1514
"""TCP payload of a full Ethernet frame, as tbf counts it."""
PORT = 23_791


def do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def control(number: int, host: int) -> str:
    """Addresses of the control links, from the range for benchmarks (RFC 2544)."""
    return f"198.18.{number}.{host}"


def build(mark: str) -> None:
    """A control link from here to each namespace and one data link between them."""
    for number, name in enumerate(SPACES, start=1):
        space = f"{mark}{name}"
        do("ip", "netns", "add", space)
        do("ip", "-n", space, "link", "set", "lo", "up")
        do("ip", "link", "add", f"{mark}c{name}", "type", "veth", "peer", "control", "netns", space)
        do("ip", "addr", "add", f"{control(number, 1)}/30", "dev", f"{mark}c{name}")
        do("ip", "link", "set", f"{mark}c{name}", "up")
        do("ip", "-n", space, "addr", "add", f"{control(number, 2)}/30", "dev", "control")
        do("ip", "-n", space, "link", "set", "control", "up")
    peer = ("peer", "data", "netns", f"{mark}b")
    do("ip", "-n", f"{mark}a", "link", "add", "data", "type", "veth", *peer)
    for number, name in enumerate(SPACES, start=1):
        space = f"{mark}{name}"
        do("ip", "-n", space, "addr", "add", f"198.18.9.{number}/24", "dev", "data")
        do("ip", "-n", space, "link", "set", "data", "up")
        rate = ("rate", f"{RATES_MBIT[name]}mbit", "burst", "16kb", "latency", "50ms")
        do("tc", "-n", space, "qdisc", "add", "dev", "data", "root", "tbf", *rate)


@pytest.fixture
def network() -> Iterator[str]:
    need_root()
    need("ip and tc")
    mark = f"tm{os.getpid() % 100_000}"
    try:
        build(mark)
    except OSError as error:
        pytest.skip(f"no network namespaces with tbf here: {error}")
    else:
        yield mark
    finally:
        for name in SPACES:
            subprocess.run(
                ["ip", "netns", "del", f"{mark}{name}"], capture_output=True, check=False
            )


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.fixture
def store(here: Place, network: str) -> Iterator[EtcdStore]:
    urls = ",".join(f"http://{control(number, 1)}:{PORT}" for number in (1, 2))
    etcd = here.start(
        *(str(find_etcd()), "--data-dir", str(here.path / "etcd"), "--log-level", "error"),
        *("--listen-client-urls", urls, "--advertise-client-urls", urls),
        *("--listen-peer-urls", "http://127.0.0.1:0"),
    )
    opened = connect(f"http://{control(1, 1)}:{PORT}")
    try:
        wait_for(lambda: answers(opened))
        yield opened
    finally:
        opened.close()
        etcd.terminate()
        etcd.communicate(timeout=20)


def answers(store: EtcdStore) -> bool:
    try:
        store.get("/")
    except StoreError:
        return False
    return True


def test_the_rate_of_each_direction_is_found_over_the_interface_of_the_job(
    here: Place, network: str, store: EtcdStore
) -> None:
    agents = [
        start_agent(
            here,
            "job",
            name,
            f"http://{control(number, 1)}:{PORT}",
            *("ip", "netns", "exec", f"{network}{name}"),
            GLOO_SOCKET_IFNAME="data",
        )
        for number, name in enumerate(SPACES, start=1)
    ]
    try:
        wait_for_agents(store, "job", list(SPACES))
        publish(store, "job", {"a": [0], "b": [1]})
        path = here.path / "measured.json"
        done = here.run(
            *(sys.executable, "-m", "trainmesh", "topology", "probe", "--json"),
            *("--etcd", f"http://{control(1, 1)}:{PORT}", "--bytes", "14MB"),
            *("--output", str(path)),
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert {node["interface"]: node["host"] for node in report["nodes"]} == {
            "data": "198.18.9.2"
        }
        [pair] = report["pairs"]
        for way, rate_mbit in (("forward", 100), ("backward", 50)):
            found = pair["measure"][way]["cost"]["bandwidth_bytes_per_s"]
            assert found == pytest.approx(rate_mbit / 8 * 1e6 * PAYLOAD_SHARE, rel=0.2)
        links = {(link["src"], link["dst"]): link for link in json.loads(path.read_text())["links"]}
        assert links["a", "core switch"]["source"] == "measured"
        assert links["a", "core switch"]["bandwidth_GBps"] == pytest.approx(0.012, rel=0.2)
        assert links["b", "core switch"]["bandwidth_GBps"] == pytest.approx(0.006, rel=0.2)
        ping = here.run(
            *(sys.executable, "-m", "trainmesh", "ping", "b", "--count", "2"),
            *("--etcd", f"http://{control(1, 1)}:{PORT}"),
        )
        assert ping.returncode == 0, ping.stderr
        assert "ping b (198.18.9.2, data) from a" in ping.stdout
    finally:
        for agent in agents:
            agent.terminate()
            agent.communicate(timeout=30)
