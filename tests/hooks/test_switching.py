"""Switching plans in a running job: no step where two ranks differ, and no hang."""

from pathlib import Path

import pytest

from tests.torchjob import run_job

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("world_size", [2, 3])
def test_200_random_switches_with_hints_at_random_delays(tmp_path: Path, world_size: int) -> None:
    results = run_job("switches.py", world_size=world_size, out=tmp_path, SWITCHES="200")
    for result in results.values():
        assert result["epochs"] == list(range(201))
        assert result == results[0]
