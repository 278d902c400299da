"""destroy_process_group and a new init_process_group: as without us, and agreement anew."""

from pathlib import Path

import pytest

from tests.torchjob import run_job


@pytest.mark.torch
def test_each_life_of_the_process_group_is_as_without_us(tmp_path: Path) -> None:
    plain = run_job("lives.py", world_size=2, out=tmp_path / "plain")
    hooked = run_job("lives.py", world_size=2, out=tmp_path / "hooked", HOOKED="1")
    for rank, result in hooked.items():
        assert result["losses"] == plain[rank]["losses"]
        assert result["worlds"] == [True, True, True]
