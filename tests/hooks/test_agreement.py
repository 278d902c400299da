"""What ranks compare, at the ends of its range; what a split says, of DDP and of HSDP."""

import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from msgspec.structs import replace
from torch._C._distributed_c10d import HashStore

from trainmesh.hooks import agreement as agreeing
from trainmesh.hooks import world
from trainmesh.hooks.agreement import Agreement, AgreementResult
from trainmesh.hooks.context import RankContext
from trainmesh.hooks.fsdp.replicas import ReplicaPlans
from trainmesh.hooks.observer import ModuleObserver
from trainmesh.hooks.switching import Switching
from trainmesh.types import MAX_INT, Hint, Plan

pytestmark = pytest.mark.torch

PLAN = Plan(algorithm="native", world_size=2, order=(0, 1))
HINT = Hint(job="j", epoch=1, effective_step=0, plan=PLAN, reason="", world=5)
OTHER = replace(HINT, fusion_bytes=1)


def channel(group: Any) -> Any:
    return SimpleNamespace(channel=group, why="", leave=lambda: None)


def together(act: Callable[[int, Any], Any]) -> list[Any]:
    """What two ranks, threads of this process, get from ``act``."""
    store, results = HashStore(), [None, None]

    def run(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=20))
        results[rank] = act(rank, group)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize(
    ("hints", "digests", "agree"),
    [
        ((HINT, HINT), (0, 0), True),
        ((HINT, HINT), (MAX_INT, MAX_INT), True),
        ((HINT, HINT), (0, MAX_INT), False),
        ((HINT, HINT), (MAX_INT, MAX_INT - 1), False),
        ((HINT, None), (0, 0), False),
        ((replace(HINT, epoch=MAX_INT),) * 2, (MAX_INT, MAX_INT), True),
        ((replace(HINT, epoch=MAX_INT), HINT), (MAX_INT, MAX_INT), False),
        ((HINT, OTHER), None, False),
        ((HINT, replace(HINT)), None, True),
    ],
)
def test_a_round_at_the_ends_of_the_range(
    monkeypatch: pytest.MonkeyPatch,
    hints: tuple[Hint | None, Hint | None],
    digests: tuple[int, int] | None,
    agree: bool,
) -> None:
    held = threading.local()
    if digests is not None:
        monkeypatch.setattr(agreeing, "hint_digest", lambda hint: digests[held.rank])

    def act(rank: int, group: Any) -> AgreementResult | None:
        held.rank = rank
        one = Agreement(channel(group), 1)
        one.propose(0, hints[rank])
        return one.result()

    for verdict in together(act):
        assert (verdict.hint is not None) is agree
        assert verdict.split is not agree


def test_a_hint_of_a_late_step_is_due_at_once_for_a_module_that_was_made_later() -> None:
    late = replace(HINT, effective_step=100_000)

    def act(rank: int, group: Any) -> list[Hint | None]:
        found = []
        for counts_steps in (True, False):
            one = Agreement(channel(group), 1, counts_steps=counts_steps)
            one.propose(0, late)
            verdict = one.result()
            assert verdict is not None
            found.append(verdict.hint)
        return found

    assert together(act) == [[None, late], [None, late]]


class OneRound(Agreement):
    """Every round says that ranks differ."""

    def __init__(self) -> None:
        pass

    def is_round(self, step: int) -> bool:
        return True

    def result(self) -> AgreementResult:
        return AgreementResult(split=True)

    def propose(self, step: int, candidate: Hint | None) -> None:
        pass


def test_a_split_is_noted_once_an_epoch() -> None:
    notes: list[tuple[str, int]] = []
    context = RankContext.__new__(RankContext)
    context._newest, context._split_epoch = HINT, 0
    context.note = lambda kind, text, *, step=0, epoch=0: notes.append((kind, epoch))  # type: ignore[method-assign]
    context.newest_hint = lambda: None  # type: ignore[method-assign]
    observer = ModuleObserver("cpu", lambda: (context, 0))
    observer._context = context
    switching: Switching[None] = Switching(channel(None), observer, None, 1)  # type: ignore[arg-type]
    switching._agreement = OneRound()
    for epoch in (1, 2):
        context._newest = replace(HINT, epoch=epoch)
        for step in range(3):
            switching.begin_step(step, torch.device("cpu"))
    assert notes == [("mismatch", 1), ("mismatch", 2)]


def heard_by(context: RankContext, notes: list[tuple[str, int]]) -> ModuleObserver:
    """Of a module on a rank whose newest hint is ``context``'s and stays it."""
    context.cadence = 1
    context.note = lambda kind, text, *, step=0, epoch=0: notes.append((kind, epoch))  # type: ignore[method-assign]
    context.newest_hint = lambda: context._newest  # type: ignore[method-assign]
    observer = ModuleObserver("cpu", lambda: (context, 0))
    observer._context = context
    return observer


def test_replicas_of_hsdp_note_a_hint_that_not_every_rank_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As DDP does: rank 0 holds the hint, rank 1 does not, and says nothing."""
    own = threading.local()
    monkeypatch.setattr(world, "current", lambda: own.world)

    def act(rank: int, group: Any) -> tuple[list[tuple[str, int]], int]:
        own.world = SimpleNamespace(channel=group, why="", is_settled=True, leave=lambda: None)
        context = RankContext.__new__(RankContext)
        context._newest, context._split_epoch = (HINT if rank == 0 else None), 0
        notes: list[tuple[str, int]] = []
        plans = ReplicaPlans(
            SimpleNamespace(world_size=2, parent=group),  # type: ignore[arg-type]
            heard_by(context, notes),
        )
        for step in range(1, 5):
            plans.begin_step(step, torch.device("cpu"))
        return notes, plans.epoch

    assert together(act) == [([("mismatch", 1)], 0), ([], 0)]
