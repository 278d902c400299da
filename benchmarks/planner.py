"""How long bound and plan take as a cluster grows: 8 GPUs a host, 8 rails, leaves and spines.

python benchmarks/planner.py [--draw docs/planner.svg]

Runs on one core. Aims: 1 024 GPUs in 2 s, 16 384 in 20 s.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.clusters import rail_cluster
from benchmarks.growth import svg
from benchmarks.machine import describe, spread
from trainmesh.topology.answer import Answer, answer
from trainmesh.types import Collective

SIZES = {64: 5, 256: 5, 1024: 5, 4096: 3, 16384: 1}
"""Ranks, and how often each is planned for."""
AIMS_S = {1024: 2.0, 16384: 20.0}
NBYTES = 100_000_000
CASES = {
    "all-reduce": (Collective.ALLREDUCE, 1.0),
    "all-gather": (Collective.ALLGATHER, 1.0),
    "all-reduce, a NIC at 50 %": (Collective.ALLREDUCE, 0.5),
}


def planned(ranks: int, collective: Collective, slow_nic: float) -> tuple[float, Answer]:
    """Seconds for bound and plan of a graph that nothing is known of yet."""
    graph = rail_cluster(ranks, slow_nic=slow_nic)
    begin = time.perf_counter()
    found = answer(graph, collective, NBYTES)
    return time.perf_counter() - begin, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", metavar="FILE.svg", type=Path)
    parser.add_argument("--up-to", metavar="RANKS", type=int, default=16384)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(describe(), "- on one core")
    curves: dict[str, dict[int, float]] = {case: {} for case in CASES}
    for ranks, times in SIZES.items():
        if ranks > args.up_to:
            continue
        for case, (collective, slow_nic) in CASES.items():
            runs = [planned(ranks, collective, slow_nic) for _ in range(times)]
            seconds, found = [took for took, _ in runs], runs[0][1]
            curves[case][ranks] = min(seconds)
            bound = found.document()["bound"]
            exact = "exact" if bound["exact"] else f"at most {bound['slack_at_most']:.1%} low"
            aim = f", aim {AIMS_S[ranks]:g} s" if ranks in AIMS_S else ""
            print(
                f"{ranks:6d} ranks, {case}: {spread(seconds, ' s')}{aim}; bound "
                f"{bound['algbw_GBps']:.3f} GB/s ({bound['kind']}, {exact}); "
                f"{found.chosen.algorithm} {found.chosen.efficiency:.1%}, "
                f"{_busy(found):.1%} without latency",
                flush=True,
            )
    if args.draw:
        args.draw.write_text(svg(curves, AIMS_S))


def _busy(found: Answer) -> float:
    """Efficiency for very large buckets."""
    return found.chosen.bound_s / found.chosen.busy_s


if __name__ == "__main__":
    main()
