"""However a launch ends, it leaves no process, socket or temporary directory behind."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchjob import JOBS, LAUNCH, Place, wait_for

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

WAITS = str(JOBS / "waits.py")
WORKER = f"-u {WAITS}"
CONTROL = ("etcd", "trainmesh.coordinator.process", "trainmesh.agent.process")


def start(here: Place, *flags: str) -> subprocess.Popen[str]:
    return here.start(*LAUNCH, "--nproc-per-node", "2", *flags)


def runs(here: Place) -> list[Path]:
    return list(here.path.glob("trainmesh/*"))


def importing_torch(here: Place, process: subprocess.Popen[str]) -> object:
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def run_directory_made(here: Place, process: subprocess.Popen[str]) -> object:
    return runs(here)


def control_plane_starting(here: Place, process: subprocess.Popen[str]) -> object:
    return here.processes("trainmesh.agent.process")


def workers_starting(here: Place, process: subprocess.Popen[str]) -> object:
    return here.processes(WORKER)


def training(here: Place, process: subprocess.Popen[str]) -> object:
    assert process.stdout is not None
    return process.stdout.readline()


def agent_listening(here: Place, process: subprocess.Popen[str]) -> object:
    return list(here.path.glob("trainmesh/*/agent.sock"))


MOMENTS = [
    importing_torch,
    run_directory_made,
    control_plane_starting,
    workers_starting,
    training,
    agent_listening,
]
Moment = Callable[[Place, subprocess.Popen[str]], object]


def assert_nothing_left(here: Place) -> None:
    assert here.processes() == {}
    assert here.files() == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing_and_is_quiet(here: Place, moment: Moment) -> None:
    process = start(here, WAITS)
    wait_for(lambda: moment(here, process))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    if moment is importing_torch:
        assert (process.returncode, err) == (-signal.SIGINT, "")
    else:
        # Torchrun's exit code, or before torchrun handles signals, by the signal as Python.
        assert process.returncode in (1, -signal.SIGINT)
        assert err.splitlines()[-1] == "trainmesh: interrupted"
    if moment is training:  # an agent may listen before torchrun handles signals
        assert process.returncode == 1
    assert "torch/distributed/launcher" not in err  # no traceback of the launcher
    assert_nothing_left(here)


@pytest.mark.parametrize("moment", [control_plane_starting, training])
def test_sigterm_leaves_nothing(here: Place, moment: Moment) -> None:
    process = start(here, WAITS)
    wait_for(lambda: moment(here, process))
    process.terminate()
    _, err = process.communicate(timeout=60)
    # By the signal before torchrun took over; 1: torchrun's exit code for a signal.
    assert process.returncode == (1 if "stopped by SIGTERM" in err else -signal.SIGTERM)
    assert "Traceback" not in err
    assert_nothing_left(here)


def test_repeated_ctrl_c_ends_workers_that_ignore_it(here: Place) -> None:
    process = start(here, WAITS, "--stubborn")
    wait_for(lambda: training(here, process))

    def again() -> bool:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.3)
        except subprocess.TimeoutExpired:
            return False
        return True

    wait_for(again)
    process.communicate(timeout=60)
    # -2: one more Ctrl-C after the clean-up, as under torchrun.
    assert process.returncode in (1, -signal.SIGINT)
    assert_nothing_left(here)


def test_a_run_without_any_training_leaves_nothing(here: Place) -> None:
    done = here.run(*LAUNCH, "--no-python", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_nothing_left(here)


def test_a_killed_launcher_takes_its_control_plane_with_it(here: Place) -> None:
    process = start(here, WAITS)
    wait_for(lambda: training(here, process))
    wait_for(lambda: all(here.processes(word) for word in CONTROL))
    (left,) = runs(here)
    process.kill()
    process.wait()
    wait_for(lambda: not any(here.processes(word) for word in CONTROL))
    workers = here.processes(WORKER)
    assert len(workers) == 2  # they go on, as under torchrun
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert left.exists()
    assert here.run(*LAUNCH, "--no-python", "sleep", "1").returncode == 0
    assert here.files() == []  # the next launch has swept, torchrun's directory too


@pytest.mark.parametrize("word", CONTROL)
def test_a_killed_control_process_is_started_again_and_workers_go_on(
    here: Place, word: str
) -> None:
    process = start(here, WAITS)
    wait_for(lambda: training(here, process))
    (victim,) = wait_for(lambda: here.processes(word))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: set(here.processes(word)) - {victim})
    assert len(here.processes(WORKER)) == 2
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    name = {"trainmesh.coordinator.process": "coordinator", "trainmesh.agent.process": "agent"}.get(
        word, word
    )
    assert f"trainmesh: the {name} ended with signal 9 and is started again" in err
    assert_nothing_left(here)
