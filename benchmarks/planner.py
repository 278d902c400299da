"""How long the choice of a plan takes as a job grows: hosts of 8 ranks around one core switch.

python benchmarks/planner.py
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe, spread
from trainmesh.topology.graph import host_graph
from trainmesh.topology.planner import choose

ROUNDS = 3
SIZES = (16, 64, 256, 512)


def seconds(ranks: int) -> float:
    hosts = {f"host{i}": range(8 * i, 8 * i + 8) for i in range(ranks // 8)}
    graph = host_graph(hosts)
    begin = time.perf_counter()
    choose(graph, [25_000_000])
    return time.perf_counter() - begin


def main() -> None:
    print(describe())
    for ranks in SIZES:
        print(f"{ranks} ranks: {spread([seconds(ranks) for _ in range(ROUNDS)], ' s')}")


if __name__ == "__main__":
    main()
