"""Scripts about which trainmesh has something to say: says.py none|own|builtin|compiled."""

import sys

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BuiltinCommHookType
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel as DDP

dist.init_process_group("gloo")
if sys.argv[1] != "none":
    model = DDP(torch.nn.Linear(3, 3))
    forward = torch.compile(model, backend="eager") if sys.argv[1] == "compiled" else model
    if sys.argv[1] == "own":
        model.register_comm_hook(None, fp16_compress_hook)
    elif sys.argv[1] == "builtin":
        model._register_builtin_comm_hook(BuiltinCommHookType.ALLREDUCE)
    for _ in range(5):
        forward(torch.ones(2, 3)).sum().backward()
dist.destroy_process_group()
