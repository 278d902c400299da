"""How often a plain DDP job under plain torchrun aborts at exit, without any trainmesh.

    python benchmarks/exit_abort.py [--runs 20]

torch 2.13 with gloo: a process that has finished its work now and then dies of "terminate called
without an active exception". Tests that start jobs run again if they died of exactly that.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe

SCRIPT = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
dist.init_process_group("gloo")
layers = [torch.nn.Linear(256, 256) for _ in range(8)]
model = DDP(torch.nn.Sequential(*layers), bucket_cap_mb=0.5)
for _ in range(100):
    model(torch.ones(8, 256)).sum().backward()
{end}
"""
WORDS = b"terminate called without an active exception"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    args = parser.parse_args()
    print(describe())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for end in ("dist.destroy_process_group()", ""):
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "job.py"
            script.write_text(SCRIPT.format(end=end))
            done = [
                subprocess.run([*torchrun, str(script)], capture_output=True, check=False)
                for _ in range(args.runs)
            ]
        aborts = sum(WORDS in run.stderr for run in done)
        print(
            f"{'with' if end else 'without'} destroy_process_group: {aborts} of {args.runs} abort"
        )


if __name__ == "__main__":
    main()
