"""Run a job script of tests/jobs under plain torchrun and collect what its ranks wrote."""

import json
import os
import signal
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
    process = subprocess.Popen(
        [*command, str(JOBS / name)],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINMESH")},
            "PYTHONPATH": str(ROOT),
            "OUT": str(out),
            "OMP_NUM_THREADS": "1",
            **env,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, stderr = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its workers
            process.wait(timeout=40)
    assert process.returncode == 0, stderr[-4000:]
    results = {int(path.stem): json.loads(path.read_text()) for path in out.glob("*.json")}
    assert sorted(results) == list(range(world_size))
    return results
