"""What one step costs under DDP, counted: operations, Python frames of trainmesh, callbacks.

Run by tests/hooks/test_cost.py under torchrun, with and without the hook (HOOKED=1).
"""

import json
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import FrameType
from unittest import mock

OUT = Path(os.environ["OUT"])
RANK = os.environ["RANK"]

HOOKED = bool(os.environ.get("HOOKED"))
if HOOKED:
    RUN = OUT / f"rank{RANK}"
    RUN.mkdir()
    os.environ.update(TRAINMESH_RUN_DIR=str(RUN), TRAINMESH_JOB="test")
    from trainmesh.hooks import patch

    patch.install()
    from trainmesh.hooks.ddp import registration
    from trainmesh.hooks.timing import StepTimer

    StepTimer.DETAIL_S = 1e9  # as if steps were short on any machine: one in 64 is timed

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch._C import Future  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

LAYERS = 8
WARM = 134
"""Two windows of the step timer, and steps enough for the last timed one to be reported."""


class Steps:
    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool = False,
        batched_grad_copy: bool = False,
        skip_all_reduce_unused_params: bool = False,
    ) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64, bias=False) for _ in range(LAYERS)]
        self.model = DDP(
            nn.Sequential(*layers),
            bucket_cap_mb=0.01,
            gradient_as_bucket_view=gradient_as_bucket_view,
            batched_grad_copy=batched_grad_copy,
            skip_all_reduce_unused_params=skip_all_reduce_unused_params,
        )
        self.number = 0

    def one(self) -> None:
        self.model(torch.ones(2, 64)).sum().backward()
        self.number += 1


def operations(steps: Steps) -> dict[str, int]:
    """How often each operation runs in a step, gloo's own included."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        steps.one()
    return {event.key: event.count for event in found.key_averages()}


def frames(steps: Steps) -> Counter[str]:
    """Calls of trainmesh's functions in a step, by file."""
    seen: Counter[str] = Counter()

    def see(frame: FrameType, event: str, _argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and "/hooks/" in name and "site-packages" not in name:
            seen[Path(name).stem] += 1

    sys.setprofile(see)
    try:
        steps.one()
    finally:
        sys.setprofile(None)
    return seen


def loops() -> int:
    """Threads that wait for gloo's sockets, and wake 100 times a second."""
    tasks = Path("/proc/self/task").iterdir()
    return [(task / "comm").read_text().strip() for task in tasks].count("gloo_tcp_loop")


def callbacks(steps: Steps) -> int:
    """Python callbacks that a step leaves for the backend's threads to run."""
    with (
        mock.patch.object(Future, "add_done_callback") as done,
        mock.patch.object(Future, "then") as then,
    ):
        steps.one()
    return done.call_count + then.call_count


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result: dict[str, object] = {}
    for name, make in (
        ("copied", Steps),
        ("views", partial(Steps, gradient_as_bucket_view=True)),
        ("batched", partial(Steps, batched_grad_copy=True)),
    ):
        steps = make()
        for _ in range(WARM):
            steps.one()
        result[name] = {"operations": operations(steps)}
        if name == "copied":
            result |= {"frames": frames(steps), "callbacks": callbacks(steps)}
            while steps.number % 64:
                steps.one()
            result["timed callbacks"] = callbacks(steps)
    buckets = steps.model._get_ddp_logging_data()["rebuilt_bucket_sizes"].split(",")
    result["buckets"] = len(buckets)
    result["loops"] = loops()
    if HOOKED:
        dispatcher = registration.dispatcher_of(steps.model)
        switching = dispatcher._switching if dispatcher is not None else None
        result["agrees"] = switching is not None and not switching.is_meeting
    left_alone = Steps(skip_all_reduce_unused_params=True)
    left_alone.one()
    result["skips"] = frames(left_alone)
    (OUT / f"{RANK}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
