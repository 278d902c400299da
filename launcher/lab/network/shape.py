"""The state of one direction of a link, and the commands of ip and tc that set it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EMULATED_LATENCY_S", "Condition", "change_commands", "first_commands"]

EMULATED_LATENCY_S = 200e-6
"""A message through the kernel takes about this long by itself: less is not emulated."""
QUEUE_S = 0.02
"""How much a port queues before it drops packets: about as much as in real switches."""
MIN_QUEUE_BYTES = 256 * 1024
"""A few segments of TCP with offloads on, however slow the link is."""
BURST_S = 0.001
"""Of a link's time, sent at once after a pause."""
MIN_BURST_BYTES = 64 * 1024
"""One segment of TCP with offloads on; a smaller burst would let none through."""
QUANTUM_BYTES = 60_000
"""Less than the kernel's limit for warnings; with a single class it changes nothing."""


@dataclass(frozen=True)
class Condition:
    """One direction of a link. The bandwidth counts Ethernet frames with their headers."""

    bandwidth_bytes_per_s: float
    latency_s: float = 0.0
    loss: float = 0.0
    """Share of packets that are lost, 0 to 1."""
    down: bool = False


def first_commands(device: str, condition: Condition) -> list[str]:
    """Lines for ``tc -batch`` that give ``device`` its rate; latency and loss are not tc's."""
    return [
        f"qdisc replace dev {device} root handle 1: htb default 1",
        _class(device, condition),
        f"qdisc replace dev {device} parent 1:1 handle 10: bfifo limit {_queue_bytes(condition)}",
    ]


def change_commands(device: str, condition: Condition) -> list[str]:
    """The same for a device that has a rate."""
    return [
        _class(device, condition),
        f"qdisc change dev {device} parent 1:1 handle 10: bfifo limit {_queue_bytes(condition)}",
    ]


def _class(device: str, condition: Condition) -> str:
    rate = f"{max(1, round(condition.bandwidth_bytes_per_s * 8))}bit"
    burst = max(MIN_BURST_BYTES, round(condition.bandwidth_bytes_per_s * BURST_S))
    return (
        f"class replace dev {device} parent 1: classid 1:1 htb rate {rate} ceil {rate} "
        f"burst {burst} cburst {burst} quantum {QUANTUM_BYTES}"
    )


def _queue_bytes(condition: Condition) -> int:
    """Of a link that is down: less than any packet."""
    if condition.down:
        return 1
    return max(MIN_QUEUE_BYTES, round(condition.bandwidth_bytes_per_s * QUEUE_S))
