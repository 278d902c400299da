"""What trainmesh costs where nothing is wrong, against plain torchrun, in pairs.

    python benchmarks/overhead.py [--pairs 10] [--only digits]

Each pair runs the same script under plain torchrun and under ``trainmesh launch`` one after the
other, in alternating order, after one pair that doesn't count. Step time is measured in the
script's process by the same probe for both: the time between DDP forward passes, the median over
the run without its first third, in which the control plane starts. What is compared are the
medians over the runs; the interval is a bootstrap over the pairs (``pairs.py``). Start-up is the
time from the command to the first backward pass. CPU time is that of agent, coordinator and etcd
together, per second of the run.
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
from benchmarks.pairs import compare  # noqa: E402

RANKS = 2
EXAMPLES = {
    "digits": (["examples/digits.py", "--epochs", "28"], 1.01),
    "chars": (["examples/chars.py", "--steps", "160"], 1.005),
}
"""Scripts of some 10 ms and some 40 ms a step, and the ratio aimed at."""
KINDS = {
    "torchrun": ["-m", "torch.distributed.run"],
    "trainmesh": ["-m", "trainmesh", "launch", "--progress", "off"],
}


def run(kind: str, script: list[str]) -> dict[str, float]:
    """One run; step time and start-up in seconds, as rank 0 saw them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe.json"
        started_s = time.time()
        subprocess.run(
            [
                *(sys.executable, *KINDS[kind], "--nproc-per-node", str(RANKS)),
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
    return {
        "step_s": median(steps),
        "startup_s": probe["first_backward_unix_s"] - started_s,
        "control_cpu": probe["control_cpu_s"] / (times[-1] - times[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--only", choices=list(EXAMPLES))
    args = parser.parse_args()
    print(describe(), flush=True)
    for name, (script, aim) in EXAMPLES.items():
        if args.only in (None, name):
            report(name, script, aim, args.pairs)


def report(name: str, script: list[str], aim: float, num_pairs: int) -> None:
    pairs: list[dict[str, dict[str, float]]] = []
    for number in range(num_pairs + 1):
        order = list(KINDS) if number % 2 else list(KINDS)[::-1]
        pairs.append({kind: run(kind, script) for kind in order})
    del pairs[0]  # files come from the disk, and the machine wakes up
    plain, ours = ([pair[kind] for pair in pairs] for kind in KINDS)
    steps = [(a["step_s"], b["step_s"]) for a, b in zip(plain, ours, strict=True)]
    print(f"{name}: step time of trainmesh / torchrun {compare(steps)}; aim <= {aim}")
    print(f"{name}: the same, pair by pair {spread([b / a for a, b in steps])}")
    plain_ms = [1e3 * one["step_s"] for one in plain]
    print(f"{name}: step time under torchrun {spread(plain_ms, ' ms')}, {RANKS} ranks")
    added = [b["startup_s"] - a["startup_s"] for a, b in zip(plain, ours, strict=True)]
    print(f"{name}: start-up added before the first step {spread(added, ' s')}; aim <= 1.5 s")
    cpu = [100 * one["control_cpu"] for one in ours]
    print(f"{name}: CPU of agent, coordinator and etcd {spread(cpu, ' % of a core')}", flush=True)


if __name__ == "__main__":
    main()
