"""A rank is killed or stopped in the middle of an all-reduce; what do the others see?

    RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. OUT=.. PLAN=<json> SIGNAL=KILL|STOP lost.py

Rank 2 sends itself the signal while its gradients are on their way. The others write the error
that their training script got, and how long they waited for it.
"""

import json
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

OUT = Path(os.environ["OUT"])
RANK = int(os.environ["RANK"])
RUN = OUT / f"rank{RANK}"
RUN.mkdir()
os.environ.update(TRAINMESH_RUN_DIR=str(RUN), TRAINMESH_JOB="test", TRAINMESH_CADENCE="1")

from trainmesh.hooks import patch  # noqa: E402

patch.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from msgspec.structs import replace  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402

from trainmesh.hooks import world  # noqa: E402
from trainmesh.hooks.ddp.registration import dispatcher_of  # noqa: E402
from trainmesh.rundir import write_atomically  # noqa: E402
from trainmesh.types import Hint  # noqa: E402
from trainmesh.wire import decode, encode  # noqa: E402

TIMEOUT_S = 4
VICTIM = 2
WARM_STEPS = 200


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT_S))
    model = DDP(nn.Linear(2000, 1500, bias=False), bucket_cap_mb=4)
    x = torch.ones(1, 2000)
    dispatcher = dispatcher_of(model)
    assert dispatcher is not None
    while not world.current().number:
        model(x).sum().backward()
    hint = decode(os.environ["HINT"].encode(), Hint, what="HINT")
    number = world.current().number
    write_atomically(RUN / "hint.json", encode(replace(hint, world=number)))
    for _ in range(WARM_STEPS):  # all ranks switch at the same step
        if dispatcher.epoch:
            break
        model(x).sum().backward()
    assert dispatcher.epoch == 1, "the plan is not in force"
    if RANK == VICTIM:
        code = getattr(signal, "SIG" + os.environ["SIGNAL"])
        threading.Timer(0.004, lambda: os.kill(os.getpid(), code)).start()
    begin, error = time.monotonic(), ""
    try:
        while True:
            model(x).sum().backward()
    except RuntimeError as caught:
        error = str(caught)
    waited_s = time.monotonic() - begin
    (OUT / f"{RANK}.json").write_text(json.dumps({"error": error, "waited_s": waited_s}))


if __name__ == "__main__":
    main()
