"""The examples, unmodified, as a user runs them: under torchrun and under trainmesh launch."""

import json
from collections.abc import Iterator

import pytest

from tests.launchjob import JOBS, LAUNCH, ROOT, TORCHRUN, Place, place

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

DIGITS = [str(ROOT / "examples" / "digits.py"), "--epochs", "2"]
CHARS = [str(ROOT / "examples" / "chars.py"), "--steps", "60"]


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_digits_are_learned_exactly_as_under_torchrun(here: Place) -> None:
    plain = here.run(*TORCHRUN, "--nproc-per-node", "2", *DIGITS)
    ours = here.run(*LAUNCH, "--nproc-per-node", "2", *DIGITS)
    assert ours.returncode == 0, ours.stderr
    assert last_line(ours.stdout).startswith("loss ")
    assert last_line(ours.stdout) == last_line(plain.stdout)


def test_a_transformer_on_another_plan_ends_within_rounding(here: Place) -> None:
    """The demo's path: a declared graph, a switch in mid-run, a report."""
    plain = here.run(*TORCHRUN, "--nproc-per-node", "4", *CHARS, timeout_s=100)
    ours = here.run(
        *LAUNCH,
        *("--nproc-per-node", "4", "--topology", str(ROOT / "examples" / "two_racks.yaml")),
        *("--plan", "ring", "--cadence", "4", "--report", "report"),
        *CHARS,
        timeout_s=100,
    )
    assert ours.returncode == 0, ours.stderr
    expected, found = (
        [float(word) for word in last_line(text).split()[1::2]]
        for text in (plain.stdout, ours.stdout)
    )
    assert found == pytest.approx(expected, rel=1e-3)
    report = json.loads((here.path / "report" / "report.json").read_text())
    assert report["schema"] == "trainmesh.report/1"
    events = " ".join(event["text"] for event in report["run"]["events"])
    assert "all 4 ranks switched to ring (epoch 1)" in events
    assert "<svg" in (here.path / "report" / "report.html").read_text()
    assert "all 4 ranks switched to ring" in ours.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "never communicated through DistributedDataParallel"),
        ("own", "own communication hook fp16_compress_hook is kept and timed"),
        ("builtin", "communication hook BuiltinCommHookType.ALLREDUCE is kept and timed"),
    ],
)
def test_what_is_left_alone_is_said_in_one_line(here: Place, kind: str, words: str) -> None:
    done = here.run(*LAUNCH, "--nproc-per-node", "2", str(JOBS / "says.py"), kind)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("trainmesh:")]
    assert lines
    assert [line for line in lines if words in line] == lines[:1]


@pytest.mark.torch
@pytest.mark.etcd
def test_a_compiled_module_is_measured(here: Place) -> None:
    flags = ["--nproc-per-node", "2", "--report", str(here.path / "report")]
    done = here.run(*LAUNCH, *flags, str(JOBS / "says.py"), "compiled")
    assert done.returncode == 0, done.stderr
    assert "untouched" not in done.stderr
