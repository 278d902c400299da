"""How much of the machine something else used: a figure measured beside it is worth little."""

import os
import resource
import time
from pathlib import Path
from typing import Self

__all__ = ["Others"]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Others:
    """CPU time since ``start`` that was neither ours, nor of processes of ours that have ended."""

    def __init__(self, began_s: float, busy_s: float, own_s: float):
        self._began_s = began_s
        self._busy_s = busy_s
        self._own_s = own_s

    @classmethod
    def start(cls) -> Self:
        return cls(time.monotonic(), _busy_s(), _own_s())

    def share(self) -> float:
        """Of all CPUs, in [0, 1]; what the hypervisor took counts too."""
        all_s = (time.monotonic() - self._began_s) * (os.cpu_count() or 1)
        others_s = _busy_s() - self._busy_s - (_own_s() - self._own_s)
        return min(1.0, max(0.0, others_s / all_s))


def _busy_s() -> float:
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) * TICK_S


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
