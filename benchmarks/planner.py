"""How long bound and plan take as a cluster grows: 8 GPUs a host, 8 rails, leaves and spines.

python benchmarks/planner.py [--draw docs/planner.svg]

Runs on one core. Aims: 1 024 GPUs in 2 s, 16 384 in 20 s. Where the CPU time is well below the
time, something else ran on that core: the figure is worth nothing.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.clusters import rail_cluster
from benchmarks.growth import svg
from benchmarks.machine import describe, spread
from trainmesh.launcher.arguments import file_to_write
from trainmesh.launcher.output_file import write_output
from trainmesh.topology.answer import PlanAnswer, answer
from trainmesh.types import Collective

SIZES = {64: 5, 256: 5, 1024: 5, 4096: 3, 16384: 1}
"""Ranks, and how often each is planned for."""
AIMS_S = {1024: 2.0, 16384: 20.0}
NBYTES = 100_000_000
CASES = {
    "all-reduce": (Collective.ALLREDUCE, 1.0),
    "all-gather": (Collective.ALLGATHER, 1.0),
    "all-reduce, a NIC at 50 %": (Collective.ALLREDUCE, 0.5),
    "all-gather, a NIC at 50 %": (Collective.ALLGATHER, 0.5),
}


class Run(NamedTuple):
    """Bound and plan of a graph that nothing was known of before."""

    wall_s: float
    cpu_s: float
    found: PlanAnswer


def planned(ranks: int, collective: Collective, slow_nic: float) -> Run:
    """Plan once for a cluster of so many ranks, one of which has ``slow_nic`` of its NIC."""
    graph = rail_cluster(ranks, slow_nic=slow_nic)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = answer(graph, collective, NBYTES)
    return Run(time.perf_counter() - wall_s, time.process_time() - cpu_s, found)


def report(ranks: int, case: str, runs: Sequence[Run]) -> str:
    """One line: time, against the aim if there is one, and what was found."""
    took = [run.wall_s for run in runs]
    found = runs[0].found
    bound = found.document()["bound"]
    exact = "exact" if bound["exact"] else f"at most {bound['slack_at_most']:.1%} low"
    aim = ""
    if ranks in AIMS_S:
        aim = f", {median(took) / AIMS_S[ranks]:.2f} of the aim of {AIMS_S[ranks]:g} s"
    return (
        f"{ranks:6d} ranks, {case}: {spread(took, ' s')}, CPU "
        f"{median(run.cpu_s for run in runs):.4g} s{aim}; bound {bound['algbw_GBps']:.3f} GB/s "
        f"({bound['kind']}, {exact}); {found.chosen.algorithm} {found.chosen.efficiency:.1%}, "
        f"{_busy(found):.1%} without latency"
    )


def on_one_core() -> None:
    """Start again there: the threads that numpy has started by now would stay where they are."""
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, {max(cores)})
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draw", metavar="FILE.svg", type=file_to_write(".svg"))
    parser.add_argument("--up-to", metavar="RANKS", type=int, default=16384)
    args = parser.parse_args()
    on_one_core()
    print(describe(), "- on one core")
    curves: dict[str, dict[int, float]] = {case: {} for case in CASES}
    for ranks, times in SIZES.items():
        if ranks > args.up_to:
            continue
        for case, (collective, slow_nic) in CASES.items():
            runs = [planned(ranks, collective, slow_nic) for _ in range(times)]
            curves[case][ranks] = median(run.wall_s for run in runs)
            print(report(ranks, case, runs), flush=True)
    if args.draw:
        write_output(args.draw, svg(curves, AIMS_S).encode(), what="--draw")


def _busy(found: PlanAnswer) -> float:
    """Efficiency for very large buckets."""
    return found.chosen.bound_s / found.chosen.busy_s


if __name__ == "__main__":
    main()
