"""torch's own DDP tests pass with our hook where they pass without it."""

import json
import os
import subprocess
import sys

import pytest

from tests.torchjob import JOBS, ROOT

pytest.importorskip(
    "expecttest", reason="torch's own tests need expecttest; make setup installs it"
)
pytestmark = pytest.mark.torch

CORE = ["test_DistributedDataParallelCPU", "test_DistributedDataParallelCPU_grad_is_view"]


def outcomes(*names: str, timeout_s: float, **env: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, str(JOBS / "torch_own.py"), *names],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINMESH")},
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=timeout_s,
        check=True,
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found.update(json.loads(line))
    return found


def test_the_core_of_them() -> None:
    assert outcomes(*CORE, timeout_s=100, HOOKED="1") == dict.fromkeys(CORE, "passed")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_all_of_them_that_two_cpu_ranks_can_run() -> None:
    plain = outcomes(timeout_s=1700)
    hooked = outcomes(timeout_s=1700, HOOKED="1")
    counts = [list(found.values()).count("passed") for found in (plain, hooked)]
    print(f"of {len(plain)} tests {counts[0]} pass without us and {counts[1]} with us")
    assert counts[0] > 30
    worse = {name: hooked.get(name) for name, one in plain.items() if hooked.get(name) != one}
    assert not worse
