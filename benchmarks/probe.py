"""Run a script and note, on rank 0, when its DDP forward passes and its first backward began.

    probe.py OUT script.py args

The same few microseconds for whatever launched it; used by overhead.py. At the end: the CPU
seconds that the launcher's other children (etcd, coordinator, agent) have taken since the first
backward pass.
"""

import atexit
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

out, *sys.argv = sys.argv[1:]
forward_s: list[float] = []
first_backward: list[float] = []
control_s: list[float] = []
original_forward: Callable[..., object] = DistributedDataParallel.forward
original_backward: Callable[..., object] = torch.Tensor.backward


def control_cpu_s() -> float:
    """CPU time so far of the launcher's children that are no workers."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            is_ours = entry.name.isdigit() and int(fields[1]) == os.getppid()
            if is_ours and b"probe.py" not in (entry / "cmdline").read_bytes():
                ticks += int(fields[11]) + int(fields[12])
        except OSError:
            continue  # not a process, or one that has ended
    return ticks / os.sysconf("SC_CLK_TCK")


def forward(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> object:
    forward_s.append(time.perf_counter())
    return original_forward(self, *args, **kwargs)


def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> object:
    if not first_backward:
        first_backward.append(time.time())
        control_s.append(control_cpu_s())
    return original_backward(self, *args, **kwargs)


DistributedDataParallel.forward = forward  # type: ignore[method-assign]
torch.Tensor.backward = backward  # type: ignore[method-assign]


def write() -> None:
    if os.environ["RANK"] == "0":
        result = {
            "forward_s": forward_s,
            "first_backward_unix_s": first_backward[0],
            "control_cpu_s": control_cpu_s() - control_s[0],
        }
        with open(out, "w") as file:
            json.dump(result, file)


atexit.register(write)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
