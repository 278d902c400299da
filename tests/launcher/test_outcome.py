"""How a launch has ended: what is learnt of torchrun, and how it is said."""

import logging
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing import api as multiprocessing_api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tests.launcher.records import analysed, lines
from trainmesh.errors import TrainmeshError
from trainmesh.launcher.report.describe_outcome import describe_attempts, outcome_title
from trainmesh.launcher.report.findings import Tone, headline
from trainmesh.launcher.run.outcome import ATTEMPT_FAILED, Ending, first_signal
from trainmesh.launcher.run.signals import Ended
from trainmesh.launcher.run.torchrun import stopped
from trainmesh.types import Failure, Outcome, RecordLine
from trainmesh.wire import decode

LOGGER = logging.getLogger(multiprocessing_api.__name__)


def failed(exit_code: int, local_rank: int) -> None:
    """As torch's ``SubprocessContext`` says it."""
    LOGGER.error(ATTEMPT_FAILED, exit_code, local_rank, 4242, "python")


def child_failed(**codes: int) -> ChildFailedError:
    """By rank; the first one is the root cause."""
    failures = {}
    for place, (name, code) in enumerate(codes.items()):
        rank = int(name.removeprefix("rank"))
        failures[rank] = ProcessFailure(rank, 100 + rank, code, "no such file")
        failures[rank].timestamp = place
    return ChildFailedError("train.py", failures)


def test_torch_still_has_the_words_that_we_listen_for() -> None:
    source = Path(str(multiprocessing_api.__file__)).read_text()
    assert f'"{ATTEMPT_FAILED}"' in source


def test_each_attempt_s_first_failure_is_known(tmp_path: Path) -> None:
    ending = Ending(is_one_node=True)
    ending.keep_at(tmp_path / "outcome.json")
    with ending.watching():
        failed(4, 1)
        LOGGER.error("something else: %s", "x")
        kept = decode((tmp_path / "outcome.json").read_bytes(), Outcome, what="outcome")
        assert kept.exit_code is None
        assert describe_attempts(kept) == [
            "Attempt 1 of torchrun failed: rank 1 ended with exit code 4."
        ]
        failed(-11, 0)
        error = child_failed(rank0=-11, rank1=-15)
        error.failures[0].message = "Traceback ...\n  at line 3\nValueError: no such thing\n"
        ending.children_failed(error)
    failed(9, 9)  # nobody listens any more
    assert ending.outcome == Outcome(
        exit_code=1,
        num_failed_attempts=2,
        failures=(
            Failure(
                attempt=1, rank=0, local_rank=0, exit_code=-11, text="ValueError: no such thing"
            ),
            Failure(attempt=1, rank=1, local_rank=1, exit_code=-15),
            Failure(attempt=0, rank=1, local_rank=1, exit_code=4),
        ),
    )
    assert [line.outcome for line in ending.lines()] == [ending.outcome]


def test_on_several_nodes_a_local_rank_is_not_called_a_rank() -> None:
    ending = Ending(is_one_node=False)
    with ending.watching():
        failed(4, 1)
    ending.ended(0)
    assert ending.outcome.exit_code == 0
    assert describe_attempts(ending.outcome) == [
        "Attempt 1 of torchrun failed: local rank 1 ended with exit code 4."
    ]


def test_failures_are_bounded() -> None:
    ending = Ending(is_one_node=True)
    with ending.watching():
        for number in range(1000):
            failed(1, number)
    assert ending.outcome.num_failed_attempts == 1000
    assert [failure.attempt for failure in ending.outcome.failures] == list(range(936, 1000))


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_of_a_storm_is_the_one(
    first: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torchrun ends the workers by that one; later ones only hurry it."""
    try:
        try:
            raise SignalException("", first)
        except SignalException:
            raise SignalException("", signal.SIGQUIT)  # noqa: B904 - as from a handler
    except SignalException as error:
        storm = error
    assert storm.sigval == signal.SIGQUIT
    assert first_signal(storm) == first
    ending = Ending(is_one_node=True)
    assert stopped(storm, ending) == 1
    assert stopped(SignalException("", signal.SIGHUP), ending) == 1  # after torchrun's end
    said = "interrupted" if first == signal.SIGINT else f"stopped by {first.name}"
    assert capsys.readouterr().err == f"trainmesh: {said}\n"
    assert ending.outcome == Outcome(exit_code=1, signal=first.name)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (KeyboardInterrupt(), Outcome(exit_code=130, signal="SIGINT")),
        (Ended(signal.SIGTERM), Outcome(exit_code=143, signal="SIGTERM")),
        (TrainmeshError("torchrun: no port"), Outcome(exit_code=1, why="torchrun: no port")),
        (MemoryError(), Outcome(exit_code=1, why="MemoryError")),
    ],
)
def test_whatever_ends_a_launch_is_kept(error: BaseException, outcome: Outcome) -> None:
    ending = Ending(is_one_node=True)
    ending.raised(error)
    assert ending.outcome == outcome


FAILED = Outcome(
    exit_code=1,
    num_failed_attempts=2,
    failures=(
        Failure(attempt=1, rank=2, local_rank=2, exit_code=-11),
        Failure(attempt=1, rank=0, local_rank=0, exit_code=-15),
        Failure(attempt=0, rank=1, local_rank=1, exit_code=4, text="ValueError: x"),
    ),
)


def test_the_report_of_a_failed_job_begins_with_that() -> None:
    found = headline(analysed([*lines(), RecordLine(outcome=FAILED)]))
    assert found.tone is Tone.BAD
    assert found.title == (
        "The job failed after 20 recorded steps (exit code 1): rank 2 was ended by SIGSEGV"
    )
    assert found.points[:3] == (
        "Then, as torchrun ends the others when one has failed: rank 0 was ended by SIGTERM.",
        "Attempt 1 of torchrun failed: rank 1 ended with exit code 4 (ValueError: x).",
        "All ranks moved to ring at step 10, and communication became 2.75x as fast.",
    )
    assert found.advice.startswith("Find out why it failed first")
    run = analysed([*lines(), RecordLine(outcome=FAILED)])
    assert run.outcome == FAILED


def test_a_job_that_was_stopped_or_restarted_says_so() -> None:
    signalled = Outcome(exit_code=1, signal="SIGTERM")
    title = headline(analysed([*lines(), RecordLine(outcome=signalled)])).title
    assert title == "The job was stopped by SIGTERM after 20 recorded steps (exit code 1)"
    nothing = headline(analysed([RecordLine(outcome=signalled)]))
    assert nothing.title == "The job was stopped by SIGTERM before its first step (exit code 1)"
    well = replace(FAILED, exit_code=0, num_failed_attempts=1, failures=FAILED.failures[2:])
    found = headline(analysed([*lines(), RecordLine(outcome=well)]))
    assert found.title.startswith("All ranks moved to ring")
    assert found.points[0].startswith("Attempt 1 of torchrun failed: rank 1 ended with exit code 4")
    refused = Outcome(exit_code=1, why="torchrun: the port is in use")
    assert outcome_title(refused, 0) == (
        "The job failed before its first step (exit code 1): torchrun: the port is in use"
    )
    assert outcome_title(Outcome(exit_code=0), 3) is None
    assert outcome_title(None, 3) is None
