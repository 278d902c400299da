"""Native plan: losses and parameters equal plain DDP's bit for bit, however DDP is used."""

from pathlib import Path

import pytest

from tests.torchjob import run_job

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("world_size", [1, 3, pytest.param(4, marks=pytest.mark.soak)])
def test_hooked_training_equals_plain_training_bit_for_bit(tmp_path: Path, world_size: int) -> None:
    plain = run_job("parity.py", world_size=world_size, out=tmp_path / "plain")
    hooked = run_job("parity.py", world_size=world_size, out=tmp_path / "hooked", HOOKED="1")
    for rank in range(world_size):
        for name, expected in plain[rank]["results"].items():
            assert hooked[rank]["results"][name] == expected, (name, rank)
