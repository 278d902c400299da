"""Cables with latency and loss: a process that carries frames between pairs of TAP devices.

``relay.py CABLES``: CABLES is JSON, a list of ``[[namespace file, device], [namespace file,
device]]``, with -1 for our own namespace. It makes the devices, writes ``ready``, and obeys lines
of JSON on standard input, ``{"cable": 0, "end": 0, "latency_s": 0.005, "loss": 0.01}`` (frames
that come from that end), each answered by ``ok``. It ends with its standard input.

TCP hands over super-frames of up to 64 KiB (TSO), which keeps the CPU time low; from a device with
loss it takes frames of the MTU, so that each packet is lost by itself. The rate is limited by the
kernel's htb on the devices; what is on its way here is bounded.

Runs by path, isolated and without ``site``: standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque

__all__ = ["main"]

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
"""These three: linux/if_tun.h."""
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
HEADER_BYTES = 10
"""Of struct virtio_net_hdr, before each frame."""
MAX_FRAME_BYTES = 70_000
"""Segments of up to 64 KiB with their headers: what the kernel hands over with offloads on."""
FRAMES_A_TURN = 64
"""Of one direction, before the other has its turn."""
MAX_HELD_BYTES = 64 * 1024 * 1024
"""On their way at a time; more are dropped, as a router with full queues does."""


class RelayDirection:
    """One direction of a cable: frames from TAP ``source`` to TAP ``sink``."""

    def __init__(self, source: int, sink: int, seed: int) -> None:
        self.source = source
        self._sink = sink
        self._latency_s = 0.0
        self._loss = 0.0
        self._draws = random.Random(seed)  # noqa: S311 - packet loss is no secret
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self.set(0.0, 0.0)

    def set(self, latency_s: float, loss: float) -> None:
        self._latency_s = latency_s
        self._loss = loss
        segments = 0 if loss else TUN_F_TSO4 | TUN_F_TSO6
        fcntl.ioctl(self.source, TUNSETOFFLOAD, TUN_F_CSUM | segments)

    @property
    def due_s(self) -> float | None:
        """When the next frame arrives (monotonic seconds)."""
        return self._held[0][0] if self._held else None

    def take(self) -> None:
        """Read what has been sent."""
        for _ in range(FRAMES_A_TURN):
            try:
                frame = os.read(self.source, MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError:
                return  # the device is down
            if self._loss and self._draws.random() < self._loss:
                continue
            if self._held_bytes + len(frame) <= MAX_HELD_BYTES:
                self._held.append((time.monotonic() + self._latency_s, frame))
                self._held_bytes += len(frame)

    def deliver(self) -> None:
        """Write what has arrived."""
        now_s = time.monotonic()
        while self._held and self._held[0][0] <= now_s:
            _, frame = self._held.popleft()
            self._held_bytes -= len(frame)
            try:
                os.write(self._sink, frame)
            except OSError:
                pass  # the device is down, or its queue is full: the frame is lost


def make_tap(namespace: int, device: str) -> int:
    """A TAP device in the network namespace of an open file (-1: ours, which we stay in)."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if namespace >= 0 and libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "can't enter a namespace")
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
    finally:
        libc.setns(ours, 0)
        os.close(ours)
    return tap


def carry(ways: list[RelayDirection]) -> None:
    """Carry frames until standard input ends."""
    by_source = {way.source: way for way in ways}
    control = os.fdopen(0, "rb", buffering=0)
    waiting = b""
    while True:
        due = [way.due_s for way in ways if way.due_s is not None]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([0, *by_source], [], [], timeout_s)
        for way in ways:
            way.deliver()
        for file in ready:
            if file != 0:
                by_source[file].take()
                continue
            read = control.read(65_536)
            if not read:
                return
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                obey(json.loads(line), ways)


def obey(order: dict[str, float], ways: list[RelayDirection]) -> None:
    """Change a way as a line says, and answer."""
    way = ways[2 * int(order["cable"]) + int(order["end"])]
    way.set(order["latency_s"], order["loss"])
    print("ok", flush=True)


def main() -> None:
    """Entry point."""
    ways: list[RelayDirection] = []
    for (a_space, a_device), (b_space, b_device) in json.loads(sys.argv[1]):
        a, b = make_tap(a_space, a_device), make_tap(b_space, b_device)
        ways += [RelayDirection(a, b, seed=len(ways)), RelayDirection(b, a, seed=len(ways) + 1)]
    print("ready", flush=True)
    carry(ways)


if __name__ == "__main__":
    main()
