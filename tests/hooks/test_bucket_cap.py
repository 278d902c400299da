"""DDP's bucket size from an earlier run: rank 0's on all ranks, and never over the script's."""

from pathlib import Path

import pytest

from tests.torchjob import run_job


@pytest.mark.torch
def test_all_ranks_take_rank_0s_bucket_size(tmp_path: Path) -> None:
    results = run_job("bucket_cap.py", world_size=2, out=tmp_path)
    assert results[0] == results[1]
    caps = results[0]["caps"]
    assert caps == {"free": 2, "given": 7, "positional": 7, "no sync": 25, "sub": 2}
    assert "unknown" in results[0]["wrong"]
