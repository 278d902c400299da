"""What the native plan adds to a step, counted rather than timed."""

from pathlib import Path
from typing import Any

import pytest

from tests.torchjob import run_job

pytestmark = pytest.mark.torch


def test_native_adds_no_pass_over_a_bucket_and_no_callback(tmp_path: Path) -> None:
    """Also where the reducer divides in another way, and so in each of them."""
    plain: Any = run_job("cost.py", world_size=2, out=tmp_path / "plain")
    ours: Any = run_job("cost.py", world_size=2, out=tmp_path / "ours", HOOKED="1")
    for rank in range(2):
        for options in ("copied", "views", "batched"):
            expected = plain[rank][options]["operations"]
            found = ours[rank][options]["operations"]
            assert expected["gloo:all_reduce"] == plain[rank]["buckets"]
            assert found == expected, options
        buckets = ours[rank]["buckets"]
        assert buckets == plain[rank]["buckets"] == 8
        assert ours[rank]["callbacks"] == plain[rank]["callbacks"] == 0
        assert ours[rank]["timed callbacks"] == buckets
        assert plain[rank]["frames"] == {}
        # Where unused parameters are skipped, nobody knows which bucket is a step's last.
        assert "dispatcher" not in ours[rank]["skips"]
        assert ours[rank]["agrees"]
        assert ours[rank]["loops"] == plain[rank]["loops"] == 1
        frames = ours[rank]["frames"]
        assert frames["reducer_group"] == buckets
        assert sum(frames.values()) <= 2 * buckets + 40, frames
