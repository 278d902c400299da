"""What trainmesh costs where nothing is wrong, against plain torchrun, in pairs.

    python benchmarks/overhead.py [--pairs 5]

Each pair runs the same script under plain torchrun and under ``trainmesh launch`` one after the
other, in alternating order; the ratio is taken within the pair. Step time is measured in the
script's process by the same probe for both: the time between DDP forward passes, median over the
run without its first third, in which the control plane starts. Start-up is the time from the
command to the first backward pass.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe, spread  # noqa: E402

RANKS = 2
EXAMPLES = {
    "digits": ["examples/digits.py", "--epochs", "60"],
    "chars": ["examples/chars.py", "--steps", "300"],
}


def run(kind: str, script: list[str]) -> dict[str, float]:
    """One run; step time and start-up in seconds, as rank 0 saw them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe.json"
        launcher = {
            "torchrun": ["-m", "torch.distributed.run"],
            "trainmesh": ["-m", "trainmesh", "launch", "--progress", "off"],
        }[kind]
        started_s = time.time()
        subprocess.run(
            [
                *(sys.executable, *launcher, "--nproc-per-node", str(RANKS)),
                *("benchmarks/probe.py", str(out), *script),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        probe = json.loads(out.read_text())
    times = probe["forward_s"]
    steps = [b - a for a, b in zip(times, times[1:], strict=False)][len(times) // 3 :]
    return {"step_s": median(steps), "startup_s": probe["first_backward_unix_s"] - started_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=list(EXAMPLES))
    args = parser.parse_args()
    print(describe())
    for name, script in EXAMPLES.items():
        if args.only not in (None, name):
            continue
        ratios, added, plain_ms = [], [], []
        for pair in range(args.pairs):
            kinds = ["torchrun", "trainmesh"]
            results = {kind: run(kind, script) for kind in (kinds if pair % 2 else kinds[::-1])}
            ratios.append(results["trainmesh"]["step_s"] / results["torchrun"]["step_s"])
            added.append(results["trainmesh"]["startup_s"] - results["torchrun"]["startup_s"])
            plain_ms.append(1e3 * results["torchrun"]["step_s"])
        print(f"{name}: step time of trainmesh / torchrun {spread(ratios)}; aim <= 1.01")
        print(f"{name}: step time under torchrun {spread(plain_ms, ' ms')}, {RANKS} ranks")
        print(f"{name}: start-up added before the first step {spread(added, ' s')}; aim <= 1.5 s")


if __name__ == "__main__":
    main()
