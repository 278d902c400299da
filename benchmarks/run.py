"""Run every benchmark of docs/benchmarks.md but the router's, one after the other: make bench.

The last one takes an hour and needs network namespaces (trainmesh lab check).
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    commands = [
        [sys.executable, "benchmarks/dispatcher.py"],
        [sys.executable, "benchmarks/planner.py"],
        [sys.executable, "benchmarks/overhead.py"],
        [*torchrun, "--nproc-per-node", "4", "benchmarks/executors.py"],
        [sys.executable, "benchmarks/lab.py", "--steps", "48", "--dropping"],
    ]
    return max(subprocess.run(command, cwd=ROOT, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
