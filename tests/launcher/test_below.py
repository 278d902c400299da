"""Training in processes that the launched workers start: measured where it can be."""

import json
import sys

import pytest

from tests.launchjob import JOBS, LAUNCH, Place
from trainmesh.hooks.launched import TorchrunWorker, unmeasured_reason

BELOW = str(JOBS / "below.py")
TORCHRUN = ["--no-python", sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
UNTOUCHED = "it ran untouched"


@pytest.mark.torch
@pytest.mark.etcd
@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ([BELOW, "mp.spawn", "2"], 2),
        ([BELOW, "forkserver", "2"], 2),
        ([BELOW, "exec"], 1),
        ([*TORCHRUN, "2", BELOW, "here"], 2),
        ([BELOW, "nowhere"], 0),
    ],
    ids=lambda value: str(value[-2:]) if isinstance(value, list) else None,
)
def test_ranks_below_a_worker(here: Place, words: list[str], ranks: int) -> None:
    done = here.run(*LAUNCH, "--nproc-per-node", "1", "--report", "report", *words, timeout_s=110)
    assert done.returncode == 0, done.stderr
    run = json.loads((here.path / "report" / "report.json").read_text())["run"]
    assert run["world_size"] == ranks
    # Said once, and where it is so.
    assert done.stderr.count(UNTOUCHED) == (ranks == 0)
    assert here.processes() == {}


@pytest.mark.torch
@pytest.mark.etcd
def test_worlds_side_by_side_are_left_alone_and_that_is_said_once(here: Place) -> None:
    words = ["--nproc-per-node", "2", "--report", "report", *TORCHRUN, "1", BELOW, "here"]
    done = here.run(*LAUNCH, *words, timeout_s=110)
    assert done.returncode == 0, done.stderr
    run = json.loads((here.path / "report" / "report.json").read_text())["run"]
    assert run["world_size"] == 0
    assert done.stderr.count("this world of 1 ranks is not measured: ") == 1
    assert UNTOUCHED not in done.stderr


ONE = TorchrunWorker(0, 1, 1, "a")
TWO_HERE = TorchrunWorker(1, 2, 2, "a")
TWO_NODES = TorchrunWorker(1, 2, 1, "a")


@pytest.mark.parametrize(
    ("launched", "here", "rank", "world_size", "measured"),
    [
        (None, ONE, 0, 1, True),  # no launch of ours
        (ONE, ONE, 0, 1, True),
        (TWO_HERE, TWO_HERE, 1, 2, True),
        (ONE, TorchrunWorker(3, 4, 4, "b"), 3, 4, True),  # a launcher below the one worker
        (ONE, ONE, 3, 4, True),  # spawned by it
        (TWO_HERE, TorchrunWorker(0, 1, 1, "b"), 0, 1, False),  # each of two has a world of its own
        (TWO_HERE, TorchrunWorker(1, 2, 2, "b"), 1, 2, False),  # of the same size
        (TWO_HERE, TWO_HERE, 3, 4, False),
        (TWO_NODES, TorchrunWorker(7, 8, 4, "b"), 7, 8, True),  # one launcher a node, one world
        (
            TWO_NODES,
            TorchrunWorker(3, 4, 4, "b"),
            3,
            4,
            False,
        ),  # one launcher a node, a world a node
        (TWO_NODES, TWO_NODES, 7, 8, True),  # spawned on each of the nodes
    ],
)
def test_which_world_is_measured(
    launched: TorchrunWorker | None,
    here: TorchrunWorker,
    rank: int,
    world_size: int,
    measured: bool,
) -> None:
    assert (unmeasured_reason(launched, here, rank, world_size) is None) == measured


@pytest.mark.parametrize("text", [None, "", "1,2", "a,b,c,d", "-1,2,2,a", "1,2,2"])
def test_a_note_that_is_none(text: str | None) -> None:
    assert TorchrunWorker.parse(text) is None


def test_a_note_is_read_back() -> None:
    assert TorchrunWorker.parse("1,2,2,a,b") == TorchrunWorker(1, 2, 2, "a,b")
