"""Train a small model under DDP while each rank listens as its own agent, until rank 0 has told
what codecs cost; write what was heard. Run by tests/hooks/test_coding_cost.py."""

import os
import socket
import time
from pathlib import Path

RANK = int(os.environ["RANK"])
RUN = Path(os.environ["RUNS"]) / str(RANK)
RUN.mkdir()
os.environ.update(TRAINMESH_RUN_DIR=str(RUN), TRAINMESH_JOB="test")

from trainmesh.hooks import patch  # noqa: E402

patch.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402

from trainmesh.rundir import RunDir  # noqa: E402
from trainmesh.types import CodecCost, RankReport  # noqa: E402
from trainmesh.wire import decode, encode  # noqa: E402

ENOUGH = 3
"""Costs on rank 0 after which the job may end."""
TIMEOUT_S = 60


def received(agent: socket.socket) -> tuple[list[str], list[CodecCost]]:
    """Kinds of the notes that have come, and codecs' costs."""
    notes: list[str] = []
    costs: list[CodecCost] = []
    while True:
        try:
            data = agent.recv(1 << 20)
        except BlockingIOError:
            return notes, costs
        report = decode(data, RankReport, what="r")
        notes += [note.kind for note in report.notes]
        costs += report.costs


def main() -> None:
    torch.set_num_threads(1)
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    agent.bind(str(RunDir(RUN).socket))
    agent.setblocking(False)
    dist.init_process_group("gloo")
    model = DDP(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 1024)))
    notes: list[str] = []
    costs: list[CodecCost] = []
    deadline_s, more = time.monotonic() + TIMEOUT_S, True
    while more:
        model(torch.randn(8, 256)).pow(2).mean().backward()
        heard = received(agent)
        notes += heard[0]
        costs += heard[1]
        waits = RANK == 0 and len(costs) < ENOUGH and time.monotonic() < deadline_s
        vote = torch.tensor([int(waits)])
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        more = bool(vote.item())
    result = encode({"notes": notes, "costs": costs})
    (Path(os.environ["OUT"]) / f"{RANK}.json").write_bytes(result)
    dist.destroy_process_group()
    agent.close()


if __name__ == "__main__":
    main()
