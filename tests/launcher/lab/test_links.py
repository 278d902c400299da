"""Links of a real lab carry what they should: rates, changes, cuts, latency and loss."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainmesh.errors import ConfigError, GraphError, TrainmeshError
from trainmesh.launcher.lab import Lab, Timeline, stream_gbps

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("lab_here")]
PROBE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("probe.py"))]
Star = Callable[..., Path]
PAYLOAD = 1448 / 1514
"""Of an Ethernet frame with a full TCP segment."""


def mbps(lab: Lab, src: str, dst: str, expected: float) -> float:
    """The rate of a stream that takes about 0.3 s if the rate is the expected one."""
    return 1e3 * stream_gbps(lab, src, dst, int(expected * 1e6 / 8 * 0.3))


def ping(lab: Lab, src: str, dst: str, count: int = 20) -> tuple[float, int]:
    """The shortest round trip in seconds, and how many of ``count`` datagrams came back."""
    echo = lab.start(dst, [*PROBE, "echo", lab.address(dst)], stdout=subprocess.PIPE)
    assert echo.stdout is not None
    try:
        port = echo.stdout.readline().decode().strip()
        pinger = lab.start(
            src, [*PROBE, "ping", lab.address(dst), port, str(count)], stdout=subprocess.PIPE
        )
        trip_s, answers = pinger.communicate(timeout=30)[0].split()
    finally:
        echo.kill()
        echo.wait()
        echo.stdout.close()
    return float(trip_s), int(answers)


def assert_rate(measured_mbps: float, link_mbps: float) -> None:
    """Hardly more than the link gives (a burst is free); less, if the machine is busy."""
    assert link_mbps * PAYLOAD / 2 < measured_mbps < link_mbps * 1.25


def test_both_directions_have_their_rate_and_a_change_is_felt(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 200})) as lab:
        assert_rate(mbps(lab, "h0", "h1", 80), 80)
        assert_rate(mbps(lab, "h1", "h0", 80), 80)
        lab.set_rate(("h0", "sw"), 20e6 / 8, both=False)
        assert_rate(mbps(lab, "h0", "h1", 20), 20)
        assert_rate(mbps(lab, "h1", "h0", 80), 80)
        lab.restore(("sw", "h0"))
        assert_rate(mbps(lab, "h0", "h1", 80), 80)


def test_two_streams_share_the_link_between_two_switches(tmp_path: Path) -> None:
    path = tmp_path / "racks.yaml"
    path.write_text(
        "version: 1\nnodes:\n"
        + "".join(f"  h{i}: {{kind: rank}}\n" for i in range(4))
        + "  a: {kind: switch}\n  b: {kind: switch}\nlinks:\n"
        + "".join(f"  - {{src: h{i}, dst: {'ab'[i % 2]}, bandwidth_gbps: 0.2}}\n" for i in range(4))
        + "  - {src: a, dst: b, bandwidth_gbps: 0.1}\n"
    )
    with Lab(path) as lab:
        assert_rate(mbps(lab, "h0", "h2", 200), 200)
        assert_rate(mbps(lab, "h2", "h3", 100), 100)


def test_nothing_passes_a_cut_until_it_is_restored(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80})) as lab:
        lab.cut(("sw", "h1"), both=False)
        with pytest.raises(TrainmeshError, match="did not get from h0 to h1 in 1 s"):
            stream_gbps(lab, "h0", "h1", 10_000, timeout_s=1)
        lab.restore(("sw", "h1"))
        assert_rate(mbps(lab, "h0", "h1", 80), 80)


def test_a_declared_latency_delays_each_way_once(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80}, alpha_us=3000)) as lab:
        trip_s, answers = ping(lab, "h0", "h1")
        assert 0.012 <= trip_s < 0.050
        assert answers == 20
        lab.set_latency(("h0", "sw"), 0.010, both=False)
        trip_s, _ = ping(lab, "h0", "h1")
        assert 0.019 <= trip_s < 0.060


def test_a_link_with_latency_has_its_rate(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80}, alpha_us=500)) as lab:
        assert_rate(mbps(lab, "h0", "h1", 80), 80)
        lab.set_rate(("h1", "sw"), 20e6 / 8)
        assert_rate(mbps(lab, "h0", "h1", 20), 20)


def test_a_small_latency_is_left_to_the_kernel(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80}, alpha_us=100)) as lab:
        assert lab.condition("h0", "sw").latency_s == 0
        with pytest.raises(ConfigError, match="has no latency or loss to change"):
            lab.set_latency(("h0", "sw"), 0.01)


def test_a_tenth_of_the_packets_is_lost(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80}), with_latency=[("h0", "sw")]) as lab:
        assert ping(lab, "h0", "h1", 200)[1] == 200
        lab.set_loss(("h0", "sw"), 0.1, both=False)
        assert 300 <= ping(lab, "h0", "h1", 400)[1] <= 385
        assert_rate(mbps(lab, "h1", "h0", 80), 80)


def test_a_timeline_changes_links_when_its_time_has_come(star: Star) -> None:
    path = star(
        {"h0": 80, "h1": 80},
        "timeline:",
        "  - {at_s: 0.2, link: [h0, sw], bandwidth_mbps: 20, latency_us: 4000, loss: 0}",
        "  - {at_step: 7, link: [h0, sw], restore: true}",
    )
    said: list[str] = []
    with Lab(path) as lab:
        declared = lab.condition("h0", "sw")
        timeline = Timeline(lab, said.append)
        timeline.tick()
        assert lab.condition("h0", "sw") == declared
        time.sleep(0.25)
        timeline.tick()
        assert lab.condition("sw", "h0").bandwidth_bytes_per_s == 20e6 / 8
        assert lab.condition("sw", "h0").latency_s == 0.004
        timeline.pace.add(6, time.monotonic_ns())
        timeline.tick()
        assert lab.condition("h0", "sw") == declared
    assert said[1] == "step 7: link h0-sw: restored"


def test_hosts_have_their_names_addresses_and_boot_ids(star: Star) -> None:
    script = "import socket; print(socket.gethostname(), open('/proc/sys/kernel/random/boot_id')"
    script += ".read().strip(), socket.gethostbyname('h1'), socket.gethostbyname('h1-data'))"
    with Lab(star({"h0": 80, "h1": 80})) as lab:
        seen = []
        for host in lab.hosts:
            command = [sys.executable, "-c", script]
            process = lab.start(host.name, command, {"A": "b"}, stdout=subprocess.PIPE)
            seen.append(process.communicate(timeout=20)[0].decode().split())
        assert [words[0] for words in seen] == ["h0", "h1"]
        assert seen[0][1] != seen[1][1]
        assert seen[0][2:] == [lab.control_address("h1"), lab.address("h1")]


def test_a_command_ends_as_it_would_elsewhere(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80})) as lab:
        assert lab.start("h0", ["sh", "-c", "exit 3"]).wait(10) == 3
        assert lab.start("h0", ["sh", "-c", "kill -TERM $$"]).wait(10) == -15
        assert lab.start("h0", ["no-such-program"], stderr=subprocess.DEVNULL).wait(10) == 127
        sleeper = lab.start("h0", ["sleep", "100"])
        sleeper.terminate()
        assert sleeper.wait(10) == -15
        left = lab.start("h1", ["sleep", "100"])
    assert left.wait(10) != 0


def test_wrong_names_are_refused(star: Star) -> None:
    with Lab(star({"h0": 80, "h1": 80})) as lab:
        with pytest.raises(ConfigError, match="no link h0-h1; its links are h0-sw, h1-sw"):
            lab.cut(("h0", "h1"))
        with pytest.raises(GraphError, match="no host 'h7'; the hosts are h0, h1"):
            lab.start("h7", ["true"])
        with pytest.raises(ConfigError, match="bandwidth must be positive"):
            lab.set_rate(("h0", "sw"), 0)
    with pytest.raises(ConfigError, match="the lab is closed"):
        lab.start("h0", ["true"])
