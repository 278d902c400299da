"""``make demo``: what it says is of its runs' own records, and it ends as everything here does."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.demo_figures import (
    Figures,
    figures,
    moved_plan,
    newest_step_s,
    step_ends_ns,
    summary,
)
from tests.launchjob import Place
from trainmesh.errors import TrainmeshError
from trainmesh.launcher.report.analysis_types import PlanOutcome
from trainmesh.launcher.report.report import load_report
from trainmesh.units import duration

DEMO = [sys.executable, "-m", "scripts.demo"]
MS = 1_000_000
Star = Callable[..., Path]


def outcome(algorithm: str, first_step: int) -> PlanOutcome:
    return PlanOutcome(
        epoch=first_step,
        algorithm=algorithm,
        plan=None,
        first_step=first_step,
        last_step=first_step + 9,
        num_samples=10,
        step_time_s=0.1,
    )


def ends(*steps_ms: int) -> list[int]:
    """When steps that took so long ended."""
    return [sum(steps_ms[: number + 1]) * MS for number in range(len(steps_ms))]


def test_a_line_that_is_still_written_is_no_step() -> None:
    assert step_ends_ns("") == []
    assert step_ends_ns("100\n200\n3") == [100, 200]


def test_steps_are_of_before_the_fall_and_after_the_move() -> None:
    """The fall is at step 5, the move at step 8; the first steps warm up."""
    times_ms = [900, 500, 10, 12, 14, 70, 70, 70, 60, 40, 42, 44]
    assert figures(ends(*times_ms), 5, 8) == Figures(0.012, 0.042)


@pytest.mark.parametrize(("fall_step", "moved_step"), [(2, 4), (5, 11)])
def test_nothing_to_compare_is_said(fall_step: int, moved_step: int) -> None:
    with pytest.raises(TrainmeshError, match="leave none to compare"):
        figures(ends(*[10] * 12), fall_step, moved_step)


def test_progress_is_of_the_newest_steps() -> None:
    assert newest_step_s(ends(10)) is None
    assert newest_step_s(ends(*[10] * 20, *[50] * 8)) == pytest.approx(0.05)


def test_only_a_plan_after_the_fall_is_a_move() -> None:
    plans = [outcome("native", 2), outcome("ring", 30), outcome("native", 50)]
    assert moved_plan([*plans, outcome("tree", 60)], 40).name == "tree"
    with pytest.raises(TrainmeshError, match="no other plan after the fall at step 40"):
        moved_plan(plans, 40)


def test_the_sentence_has_both_step_times_and_their_ratio() -> None:
    said = summary(
        "link h3-sw: 100 Mbit/s", 80, outcome("tree", 113), Figures(0.1, 0.36), Figures(0.11, 0.24)
    )
    assert "plain torchrun went from 100 ms to 360 ms" in said
    assert "trainmesh launch from 110 ms to 240 ms" in said
    assert said.endswith("moved to tree at step 113: 1.50x as fast as torchrun")


@pytest.mark.root
@pytest.mark.torch
@pytest.mark.etcd
@pytest.mark.timeout(420)
@pytest.mark.usefixtures("lab_here")
def test_both_runs_are_of_one_fall_and_the_plan_moves(here: Place, star: Star) -> None:
    fall = "  - {at_step: 50, link: [h3, sw], bandwidth_mbps: 100}"
    path = star(dict.fromkeys(("h0", "h1", "h2", "h3"), 400), "timeline:", fall)
    words = ["--topology", str(path), "--steps", "120", "out"]
    done = here.run(*DEMO, *words, timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("torchrun", "trainmesh launch"):
        fell = re.search(rf"demo: {name}: step (\d+): link h3-sw: 100 Mbit/s\n", done.stdout)
        assert fell, done.stdout
        assert int(fell[1]) >= 50
    plans = load_report(here.path / "out").run.plans
    moved = moved_plan(plans, 50)
    sentence = done.stdout.splitlines()[-2]
    assert f"moved to {moved.name} at step {moved.first_step}" in sentence
    recorded = {
        launcher: figures(
            step_ends_ns((here.path / "out" / f"{launcher}.times").read_text()),
            50,
            moved.first_step,
        )
        for launcher in ("torchrun", "trainmesh")
    }
    for found in recorded.values():
        assert f"from {duration(found.before_s)} to {duration(found.after_s)}" in sentence
    assert done.stdout.splitlines()[-1].startswith("demo: open out/report.html")
    assert here.processes() == {}
    assert here.files() == []


@pytest.mark.root
@pytest.mark.torch
@pytest.mark.etcd
@pytest.mark.usefixtures("lab_here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_nothing_is_left(here: Place, number: int) -> None:
    demo = here.start(*DEMO, "out")
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("demo: torchrun: step "):
            break
    demo.send_signal(number)
    rest, errors = demo.communicate(timeout=40)
    assert demo.returncode == -number, rest
    assert "Traceback" not in rest + errors
    assert here.processes() == {}
    assert here.files() == []


@pytest.mark.root
@pytest.mark.torch
@pytest.mark.usefixtures("lab_here")
def test_a_run_that_fails_is_said_in_one_line(here: Place, star: Star) -> None:
    fall = "  - {at_step: 60, link: [h1, sw], bandwidth_mbps: 50}"
    path = star({"h0": 100, "h1": 100}, "timeline:", fall)
    done = here.run(*DEMO, "--topology", str(path), "out", TORCH_DISTRIBUTED_DEBUG="no such")
    assert done.returncode == 1
    error = done.stdout.splitlines()[-1]
    assert error.startswith("demo: error: torchrun ended with exit code 1; out/torchrun.log ends")
    assert "Traceback" not in done.stderr
    assert here.files() == []


def test_steps_that_end_before_the_fall_are_refused(here: Place) -> None:
    done = here.run(*DEMO, "--steps", "80", "out")
    assert done.returncode == 2
    assert done.stdout == "demo: error: --steps 80: the link falls at step 80\n"


@pytest.mark.parametrize("entry", ["", "  - {at_s: 4, link: [h0, sw], bandwidth_mbps: 5}"])
def test_a_file_without_a_fall_at_a_step_is_refused(here: Place, star: Star, entry: str) -> None:
    path = star({"h0": 100, "h1": 100}, *(["timeline:", entry] if entry else []))
    done = here.run(*DEMO, "--topology", str(path), "out")
    assert done.returncode == 2
    assert done.stdout == (
        f"demo: error: {path}: the demo's timeline is one bandwidth_mbps at one at_step above 0\n"
    )
