"""Compressed training under DDP, through its rebuild of the buckets, comes where it should.
(benchmarks/convergence.py does the same for the examples, over seeds.)"""

from pathlib import Path

import pytest

from tests.torchjob import run_job

pytestmark = pytest.mark.torch

FURTHER = {"bf16": 0.005, "fp16": 0.005, "int8": 0.005, "powersgd:1": 0.1, "topk:0.03": 0.2}
"""How much more loss than without compression it may end with, relative. Without error feedback
powersgd:1 and topk:0.03 end with 0.3 more."""


def test_every_codec_trains(tmp_path: Path) -> None:
    ranks = run_job("codecs.py", world_size=2, out=tmp_path)
    plain = ranks[0]["none"]
    assert all(one["loss"] < 0.1 * one["start"] for one in plain)
    for name, further in FURTHER.items():
        for one, other in zip(ranks[0][name], ranks[1][name], strict=True):
            assert one["bits"] == other["bits"], name
            assert one["buckets"][0] != one["buckets"][1], "DDP has not rebuilt its buckets"
        losses = [one["loss"] / plain[seed]["loss"] for seed, one in enumerate(ranks[0][name])]
        assert max(losses) <= 1 + further, (name, losses)
