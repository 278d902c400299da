"""Switching plans, fusion and codecs in a running job: no step where two ranks differ, no hang."""

from pathlib import Path

import pytest

from tests.torchjob import run_job
from trainmesh.hooks.agreement import is_round

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("world_size", "switches"), [(2, 100), (3, 60)])
def test_random_switches_with_hints_at_random_delays(
    tmp_path: Path, world_size: int, switches: int
) -> None:
    check(tmp_path, world_size, switches, timeout_s=100)


@pytest.mark.parametrize(
    ("cadence", "rounds"),
    [
        (1, list(range(1, 40))),
        (5, [1, 2, 4, *range(5, 40, 5)]),
        (16, [1, 2, 4, 8, 16, 32]),
        (1024, [1, 2, 4, 8, 16, 32]),
    ],
)
def test_the_first_rounds_come_sooner(cadence: int, rounds: list[int]) -> None:
    assert [step for step in range(1, 40) if is_round(step, cadence)] == rounds


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_thousand_steps_of_random_switches(tmp_path: Path, world_size: int) -> None:
    """Two to three steps to a switch."""
    assert check(tmp_path, world_size, switches=600, timeout_s=800) >= 1000


def check(out: Path, world_size: int, switches: int, timeout_s: float) -> int:
    """How many steps it took."""
    results = run_job(
        "switches.py", world_size=world_size, out=out, timeout_s=timeout_s, SWITCHES=str(switches)
    )
    for result in results.values():
        assert result["epochs"] == list(range(switches + 1))
        assert result["steps"] == results[0]["steps"]
        assert result["exact_steps"] > switches / 4
        assert result["grown_bytes"] < 30e6
    return int(results[0]["steps"])
