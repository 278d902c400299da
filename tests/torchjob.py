"""Run a job script of tests/jobs under plain torchrun and collect what its ranks wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
JOBS = Path(__file__).parent / "jobs"


def run_job(
    name: str, *, world_size: int, out: Path, timeout_s: float = 100, **env: str
) -> dict[int, dict[str, Any]]:
    """Run tests/jobs/``name`` on ``world_size`` ranks; each rank's JSON result, by rank."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    done = subprocess.run(
        [*command, str(JOBS / name)],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINMESH")},
            "PYTHONPATH": str(ROOT),
            "OUT": str(out),
            "OMP_NUM_THREADS": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = {int(path.stem): json.loads(path.read_text()) for path in out.glob("*.json")}
    assert sorted(results) == list(range(world_size))
    return results
