"""How real launches end is in their reports."""

import signal
import time

import pytest
from msgspec.structs import replace

from tests.launchjob import JOBS, LAUNCH, Place
from trainmesh.launcher.report.report import load_report
from trainmesh.types import Failure, Outcome

pytestmark = [pytest.mark.torch, pytest.mark.etcd]


def test_a_worker_that_fails_twice_is_in_the_report(here: Place) -> None:
    flags = ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    done = here.run(*LAUNCH, *flags, "--report", "out", str(JOBS / "fails.py"), timeout_s=120)
    assert done.returncode == 1
    report = load_report(here.path / "out")
    outcome = report.run.outcome
    assert outcome is not None
    assert (outcome.exit_code, outcome.num_failed_attempts) == (1, 2)
    root, *_, earlier = outcome.failures
    assert root == Failure(attempt=1, rank=1, local_rank=1, exit_code=5)
    assert earlier == replace(root, attempt=0)
    assert report.headline.title == (
        "The job failed before its first step (exit code 1): rank 1 ended with exit code 5"
    )
    assert here.run(*LAUNCH[:-1], "report", "out").stdout.startswith(report.headline.title)


def test_the_first_of_several_signals_is_in_the_report(here: Place) -> None:
    """The worker ignores them, so that the others come while torchrun waits for it. In the order of
    their numbers, in which those that are pending at once are handled."""
    script = str(JOBS / "waits.py")
    process = here.start(*LAUNCH, "--report", "out", script, "--stubborn")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.3)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "trainmesh: stopped by SIGHUP\n" in err
    assert err.count("trainmesh: stopped by") + err.count("trainmesh: interrupted") == 1
    assert load_report(here.path / "out").run.outcome == Outcome(exit_code=1, signal="SIGHUP")
