"""What happens to a job in which one rank is not like the others, and to one that makes many
modules; a JSON file a rank. Run by tests/hooks/test_together.py under torchrun, on two ranks.

Every scenario begins as if the process group were new, and trains until a hint for a ring is in
force on all ranks, or so many steps that it would be. On two ranks a ring gives the same bits.
"""

import contextlib
import gc
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from unittest import mock

BASE = Path(os.environ["OUT"])
RANK = int(os.environ["RANK"])
RUN = BASE / f"rank{RANK}"
RUN.mkdir()
os.environ.update(TRAINMESH_RUN_DIR=str(RUN), TRAINMESH_JOB="test", TRAINMESH_CADENCE="2")

from trainmesh.hooks import patch  # noqa: E402

patch.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: E402

from trainmesh.agent.rank import HintFile, SocketReporter  # noqa: E402
from trainmesh.hooks import context, loss, modules, timing, world  # noqa: E402
from trainmesh.hooks.agreement import Agreement  # noqa: E402
from trainmesh.hooks.context import RankContext  # noqa: E402
from trainmesh.hooks.ddp import registration  # noqa: E402
from trainmesh.hooks.ddp.buckets import BucketOrder  # noqa: E402
from trainmesh.hooks.loss import PendingLoss  # noqa: E402
from trainmesh.hooks.route.coding_cost import CodingCosts  # noqa: E402
from trainmesh.hooks.timing import HostMarks, StepTimer  # noqa: E402
from trainmesh.rundir import write_atomically  # noqa: E402
from trainmesh.types import Hint, Plan  # noqa: E402
from trainmesh.wire import encode  # noqa: E402

STEPS = 60
PAUSE_S = 0.01
WRAPS = 60
MAX_FILES = 200


class Broken(Exception):
    pass


def breaks(*args: object, **kwargs: object) -> None:
    raise Broken("on purpose")


def train(model: nn.Module, steps: int = STEPS, until: Callable[[], bool] | None = None) -> float:
    """The loss of the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(RANK)
    done = torch.zeros(1)
    for step in range(steps):
        if step == 4 and until is not None:  # the world is known
            ask_for_a_ring()
        last = model(torch.randn(4, 8, generator=draws)).pow(2).mean()
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
        time.sleep(PAUSE_S)
        done.fill_(until is not None and until())
        dist.all_reduce(done)
        if done == dist.get_world_size():
            break
    return float(last.detach())


def new_model() -> DDP:
    torch.manual_seed(0)
    return DDP(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1)))


def ask_for_a_ring() -> None:
    """Leave the hint that the world is known for."""
    ring = Plan(algorithm="ring", world_size=2, order=(1, 0))
    number = world.current().number
    hint = Hint(job="test", epoch=1, effective_step=0, plan=ring, reason="test", world=number)
    write_atomically(RUN / "hint.json", encode(hint))


def epoch_of(model: DDP) -> int:
    dispatcher = registration.dispatcher_of(model)
    return dispatcher.epoch if dispatcher is not None else 0


def runs_the_first_plan(model: DDP) -> bool:
    return epoch_of(model) == 1


def resources() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


lives = count(100)


@contextlib.contextmanager
def a_new_life(number: int | None = None) -> Iterator[io.StringIO]:
    """As if the process group were new; what is said. ``number``: of a life that left its marks."""
    world._worlds.clear()
    # A rank without us has not counted.
    world._num_lives = next(lives) if number is None else number
    modules._context = None
    modules._num_joined = 0
    (RUN / "hint.json").unlink(missing_ok=True)
    context._said.clear()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        yield said


def scenario(
    *broken: contextlib.AbstractContextManager[object], life: int | None = None
) -> dict[str, object]:
    """Train while this is broken on rank 1."""
    with a_new_life(life) as said, contextlib.ExitStack() as stack:
        if RANK == 1:
            for one in broken:
                stack.enter_context(one)
        model = new_model()
        last = train(model, until=lambda: epoch_of(model) == 1)
    return {"epoch": epoch_of(model), "loss": last, "said": said.getvalue()}


def healthy() -> dict[str, object]:
    return scenario()


def restarted() -> dict[str, object]:
    """torchrun starts the processes again, and keeps the store."""
    life = next(lives)
    scenario(life=life)
    return scenario(life=life)


def rank_without_us() -> dict[str, object]:
    return scenario(mock.patch.object(registration, "_attach", return_value=None))


def other_cadence() -> dict[str, object]:
    return scenario(mock.patch.dict(os.environ, TRAINMESH_CADENCE="7"))


def no_context() -> dict[str, object]:
    return scenario(mock.patch.object(RankContext, "__init__", breaks))


def cannot_connect() -> dict[str, object]:
    return scenario(mock.patch.object(world, "small_gloo_group", breaks))


def cannot_read_marks() -> dict[str, object]:
    return scenario(mock.patch.object(world.Handshake, "_read", breaks))


def cannot_leave_marks() -> dict[str, object]:
    return scenario(mock.patch.object(world.Handshake, "_add", breaks))


def cannot_propose() -> dict[str, object]:
    return scenario(mock.patch.object(Agreement, "propose", breaks))


def cannot_read_hints() -> dict[str, object]:
    return scenario(mock.patch.object(RankContext, "newest_hint", breaks))


def breaks_later() -> dict[str, object]:
    """The plan is in force when agreement breaks on one rank: it stays, on both."""
    with a_new_life() as said:
        model = new_model()
        train(model, until=lambda: epoch_of(model) == 1)
        with mock.patch.object(Agreement, "propose", breaks) if RANK else contextlib.nullcontext():
            last = train(model, steps=10)
    return {"epoch": epoch_of(model), "loss": last, "said": said.getvalue()}


def many_modules() -> dict[str, object]:
    """60 modules under a limit of 200 files, then some that follow a plan; none needs the
    garbage collector to end, as none of DDP's own does."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, limits[1]))
    with a_new_life():
        train(new_model(), until=lambda: world.current().is_settled)
        (RUN / "hint.json").unlink()
        gc.collect()
        gc.disable()
        before = resources()
        for _ in range(WRAPS):
            train(new_model(), steps=3)
        after = resources()
        epochs = []
        for _ in range(5):
            model = new_model()
            train(model, until=partial(runs_the_first_plan, model))
            epochs.append(epoch_of(model))
            del model
        planned = resources()
        gc.enable()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return {"before": before, "after": after, "planned": planned, "epochs": epochs}


OBSERVERS: dict[str, tuple[object, str]] = {
    "loss is looked at": (loss, "_is_loss"),
    "loss is kept": (PendingLoss, "__init__"),
    "loss is read": (PendingLoss, "_read"),
    "bucket is marked": (HostMarks, "mark"),
    "mark starts": (timing.Mark, "_start_now"),
    "mark ends": (timing.Mark, "_end_now"),
    "forward": (StepTimer, "forward"),
    "step begins": (StepTimer, "begin"),
    "timer marks": (StepTimer, "mark"),
    "step ends": (StepTimer, "close"),
    "steps are reported": (StepTimer, "finished"),
    "report": (SocketReporter, "step"),
    "note": (SocketReporter, "note"),
    "codecs are timed": (CodingCosts, "see"),
    "buckets are looked at": (BucketOrder, "read_parameters"),
    "hint file": (HintFile, "poll"),
    "context": (RankContext, "__init__"),
    "module joins": (modules, "join"),
}


def observers() -> dict[str, dict[str, object]]:
    """Each observer of ours raises, on both ranks, and at last all of them."""
    found: dict[str, dict[str, object]] = {}
    broken = {"none": [], **{name: [one] for name, one in OBSERVERS.items()}}
    for name, places in {**broken, "all": list(OBSERVERS.values())}.items():
        with a_new_life() as said, contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.dict(os.environ, TRAINMESH_COMPRESSION="auto"))
            for owner, attribute in places:
                stack.enter_context(mock.patch.object(owner, attribute, breaks))
            model = new_model()
            last = train(model, steps=8)
            dispatcher = registration.dispatcher_of(model)
            assert dispatcher is not None
            dispatcher.finish()
        found[name] = {"loss": last, "said": said.getvalue().splitlines()}
    with a_new_life(), mock.patch.dict(os.environ, TRAINMESH_RUN_DIR=""):
        found["none"]["after_60"] = train(new_model())
    return found


SCENARIOS = {
    "observers": observers,
    "healthy": healthy,
    "restarted": restarted,
    "rank_without_us": rank_without_us,
    "other_cadence": other_cadence,
    "no_context": no_context,
    "cannot_connect": cannot_connect,
    "cannot_read_marks": cannot_read_marks,
    "cannot_leave_marks": cannot_leave_marks,
    "cannot_propose": cannot_propose,
    "cannot_read_hints": cannot_read_hints,
    "breaks_later": breaks_later,
    "many_modules": many_modules,
}


def main() -> None:
    dist.init_process_group("gloo")
    results = {}
    for name, run in SCENARIOS.items():
        print(name, file=sys.stderr, flush=True)
        results[name] = run()
        dist.barrier()
    (BASE / f"{RANK}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
