"""Run a script and note, on rank 0, when its DDP forward passes and its first backward began.

    probe.py OUT script.py args

The same few microseconds for whatever launched it; used by overhead.py.
"""

import atexit
import json
import os
import runpy
import sys
import time

import torch
from torch.nn.parallel import DistributedDataParallel

out, *sys.argv = sys.argv[1:]
forward_s: list[float] = []
first_backward: list[float] = []
original_forward = DistributedDataParallel.forward
original_backward = torch.Tensor.backward


def forward(self, *args, **kwargs):
    forward_s.append(time.perf_counter())
    return original_forward(self, *args, **kwargs)


def backward(self, *args, **kwargs):
    if not first_backward:
        first_backward.append(time.time())
    return original_backward(self, *args, **kwargs)


DistributedDataParallel.forward = forward
torch.Tensor.backward = backward


def write() -> None:
    if os.environ["RANK"] == "0":
        result = {"forward_s": forward_s, "first_backward_unix_s": first_backward[0]}
        with open(out, "w") as file:
            json.dump(result, file)


atexit.register(write)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
