"""Which interfaces lead to other machines, told from /sys as the kernel writes it."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainmesh.launcher.doctor.interfaces import Interface, Reach, describe, look, others, suggested

UP, DOWN = "0x1003", "0x1002"


class Machine:
    """A tree like /sys and /proc/net, and the addresses that the kernel would tell."""

    def __init__(self, root: Path) -> None:
        self.net = root / "sys" / "class" / "net"
        self.net.mkdir(parents=True)
        self.devices = root / "sys" / "devices"
        self.proc = root / "proc"
        self.proc.mkdir()
        self.addresses: dict[str, str] = {}

    def add(
        self,
        name: str,
        address: str | None = None,
        *,
        device: str = "",
        lower: tuple[str, ...] = (),
        files: Mapping[str, object] | None = None,
        folders: tuple[str, ...] = (),
        master: str = "",
        peer_elsewhere: bool = False,
    ) -> None:
        folder = self.net / name
        folder.mkdir()
        index = len(self.addresses) + 1
        facts = {"type": 1, "flags": UP, "operstate": "up", "ifindex": index}
        facts |= {"iflink": 999 if peer_elsewhere else index}
        for file, value in (facts | dict(files or {})).items():
            (folder / file).write_text(f"{value}\n")
        for one in folders:
            (folder / one).mkdir()
        for one in lower:
            (folder / f"lower_{one}").symlink_to(self.net / one)
        if device:
            target = self.devices / device
            target.mkdir(parents=True)
            (folder / "device").symlink_to(target)
        if master:
            (folder / "master").symlink_to(self.net / master)
        self.addresses[name] = address or ""

    def route(self, name: str) -> None:
        row = f"{name}\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        (self.proc / "route").write_text("Iface\tDestination\tGateway ...\n" + row)

    def found(self) -> dict[str, Interface]:
        interfaces = look(
            list(self.addresses),
            sys=self.net,
            proc=self.proc,
            address=lambda name: self.addresses[name] or None,
        )
        return {one.name: one for one in interfaces}

    def suggested(self) -> list[str]:
        return [one.name for one in suggested(self.found().values())]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "usb")  # the word in a path above /sys means nothing
    made.add("lo", "127.0.0.1", files={"type": 772, "flags": "0x9", "operstate": "unknown"})
    return made


def test_a_server_with_everything(machine: Machine) -> None:
    machine.add("eno1", "10.0.0.5", device="pci0/eno1", files={"speed": 1000})
    machine.add("ens1", device="pci0/ens1", master="bond0", files={"flags": "0x1803"})
    machine.add("bond0", "10.9.0.5", lower=("ens1",), files={"speed": 50000}, folders=("bonding",))
    vlan = {"speed": 50000, "uevent": "DEVTYPE=vlan"}
    machine.add("data", "10.8.0.5", lower=("bond0",), files=vlan)
    machine.add("ib0", "10.7.0.5", device="pci0/ib0", files={"type": 32, "speed": 400000})
    machine.add("ens2", device="pci0/ens2")
    down = {"flags": DOWN, "operstate": "down"}
    machine.add("ens3", "10.6.0.5", device="pci0/ens3", files=down)
    machine.add("ens4", "10.6.0.6", device="pci0/ens4", files={"operstate": "down"})
    machine.add("br-lan", "10.5.0.5", lower=("tap7", "ens5"), folders=("bridge",))
    machine.add("ens5", device="pci0/ens5", master="br-lan")
    machine.add("tap7", master="br-lan", files={"tun_flags": "0x1002"})
    machine.add("docker0", "172.17.0.1", lower=("veth1",), folders=("bridge",))
    machine.add("veth1", master="docker0", peer_elsewhere=True)
    machine.add("virbr0", "192.168.122.1", folders=("bridge",), files={"operstate": "down"})
    machine.add("ifb0", files={"flags": "0x82", "operstate": "down"})
    machine.add("dummy0", "10.4.0.1", files={"operstate": "unknown"})
    machine.add("tun0", "10.3.0.1", files={"type": 65534, "operstate": "unknown"})
    machine.add("wg0", "10.2.0.1", files={"type": 65534, "operstate": "unknown"})
    machine.add("idrac", "169.254.0.2", device="pci0/usb1/1-1")
    machine.add("bmc", "10.1.0.2", device="pci0/usb1/1-2")
    machine.add("wlan0", "10.1.1.2", device="pci0/wlan0", folders=("phy80211",))
    machine.route("eno1")
    # The fastest first; br-lan says no speed.
    assert machine.suggested() == ["ib0", "bond0", "data", "eno1", "br-lan"]
    found = machine.found()
    assert {name: one.why for name, one in found.items() if name not in machine.suggested()} == {
        "lo": "loopback",
        "ens1": "part of bond0",
        "ens2": "no address",
        "ens3": "down",
        "ens4": "down",
        "ens5": "part of br-lan",
        "tap7": "part of br-lan",
        "docker0": "a bridge inside this machine",
        "veth1": "part of docker0",
        "virbr0": "down",
        "ifb0": "down",
        "dummy0": "virtual, inside this machine",
        "tun0": "tunnel",
        "wg0": "tunnel",
        "idrac": "link-local address only",
        "bmc": "USB, perhaps a management card",
        "wlan0": "wireless",
    }
    kinds = [found[name].why for name in machine.suggested()]
    assert kinds == ["InfiniBand", "bond", "VLAN", "Ethernet", "bridge"]
    assert describe([found["eno1"]]) == "eno1 (Ethernet, 10.0.0.5, 1 Gbit/s, default route)"
    assert describe([found["ifb0"], found["lo"]]) == "ifb0 (down), lo (loopback)"
    assert describe(others(found.values())).endswith(", 13 more")


def test_a_container_has_one_end_of_a_pair(machine: Machine) -> None:
    machine.add("eth0", "10.244.1.7", peer_elsewhere=True, files={"speed": 10000})
    machine.add("net1", "10.56.1.7", peer_elsewhere=True)
    machine.add("tunl0", files={"type": 768, "flags": "0x80", "operstate": "down"})
    machine.route("eth0")
    assert machine.suggested() == ["eth0", "net1"]
    assert machine.found()["eth0"].reach is Reach.DEFAULT_ROUTE


def test_a_pair_with_both_ends_here_leads_nowhere(machine: Machine) -> None:
    machine.add("veth0", "10.0.9.1", files={"ifindex": 7, "iflink": 8})
    machine.add("veth1", "10.0.9.2", files={"ifindex": 8, "iflink": 7})
    assert machine.suggested() == []
    # Numbers are those of each namespace: another interface here may have the far end's.
    machine.add("eth0", "10.0.8.2", files={"ifindex": 9, "iflink": 8})
    assert machine.suggested() == ["eth0"]


def test_ipv6_only(machine: Machine) -> None:
    machine.add("eth0", "2001:db8::7", peer_elsewhere=True)
    machine.add("fake", "fd00::8")
    default = "0" * 32
    row = f"{default} 00 {default} 00 {'f' * 32} 00000400 00000002 00000000 00000003     eth0\n"
    (machine.proc / "ipv6_route").write_text(row)
    assert machine.suggested() == ["eth0"]
    assert machine.found()["eth0"].reach is Reach.DEFAULT_ROUTE


def test_less_likely_ones_where_there_is_nothing_better(machine: Machine) -> None:
    machine.add("wg0", "10.2.0.1", files={"type": 65534, "operstate": "unknown"})
    assert machine.suggested() == ["wg0"]
    machine.add("wlan0", "10.1.1.2", device="pci0/wlan0", folders=("phy80211",))
    assert machine.suggested() == ["wlan0"]


def test_a_sandbox_without_sys(tmp_path: Path) -> None:
    addresses = {"lo": "127.0.0.1", "eth0": "10.0.0.2"}
    found = look(addresses, sys=tmp_path / "no", proc=tmp_path / "no", address=addresses.get)
    assert [one.name for one in suggested(found)] == ["eth0"]
    assert [one.why for one in found] == ["loopback", "kind not known"]


def test_interfaces_that_stand_on_each_other_end(machine: Machine) -> None:
    machine.add("a", "10.0.0.1", lower=("b",))
    machine.add("b", "10.0.0.2", lower=("a",))
    assert machine.suggested() == []


def test_this_machine() -> None:
    found = {one.name: one for one in look()}
    assert set(found) == {name for _, name in socket.if_nameindex()}
    assert found["lo"].reach is Reach.NOWHERE
    assert all(one.address for one in suggested(found.values()))


def test_the_kernels_own_virtual_interfaces() -> None:
    """In a network namespace of its own, with an address on each kind that this kernel has."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    add = ["dummy", "bridge", "ifb", "veth peer name there"]
    script = [
        "mount -t sysfs none /sys",
        "ip link set lo up",
        *(f"ip link add x{place} type {kind} || true" for place, kind in enumerate(add)),
        "ip tuntap add dev x4 mode tun || true",
        "for i in x0 x1 x2 x3 x4; do ip link set $i up && ip address add 10.9.8.7/24 dev $i || "
        "true; done",
        "python -c 'import trainmesh.launcher.doctor.interfaces as i; f = i.look(); "
        'print(i.describe(i.suggested(f)) + "; not " + "/".join(o.name for o in i.others(f)))\'',
    ]
    words = ["unshare", "--net", "--mount", "sh", "-ec", "\n".join(script)]
    words[-1] = words[-1].replace("python", sys.executable)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if "; not " not in done.stdout:
        pytest.skip(f"this user can't make network interfaces: {done.stderr.strip()[:200]}")
    use, _, left_out = done.stdout.strip().partition("; not ")
    assert use == ""
    assert {"lo", "x1", "there"} <= set(left_out.split("/"))
