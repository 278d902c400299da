"""All-reduce and step times on emulated clusters: plain gloo, trainmesh, every algorithm, bound.

    python benchmarks/lab.py [--only NAME] [--rounds N] [--no-steps] [--json FILE]

Each scenario is a topology file of examples/lab. First every algorithm's plan sums 25 MB in turn,
in one run, against the backend's own all-reduce on the same group. Then the same training script
runs under plain torchrun and under trainmesh, which is told the file. The bound is that of the
graph, lengthened by what TCP/IP leaves of a link's rate, measured by one plain stream.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec

from benchmarks.machine import describe, spread
from trainmesh.launcher.lab import Lab, run_job, stream_gbps
from trainmesh.topology.document import load_file
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import choose, planners
from trainmesh.types import Plan

ROOT = Path(__file__).parent.parent
SCENARIOS = {
    "four_equal": "four equal hosts",
    "one_slow_50": "one NIC of four at 50 %",
    "one_slow_25": "one NIC of four at 25 %",
    "eight_one_slow_50": "one NIC of eight at 50 %",
    "two_racks": "two racks of four, uplink 4:1, ranks interleaved",
    "two_racks_ordered": "two racks of four, uplink 4:1, ranks in order",
    "three_sites": "three sites of two over slow links",
    "island_and_slow": "a fast island and two slow hosts",
}
NBYTES = 25_000_000
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
JOB_S = 600


def plans_for(graph: LinkGraph) -> tuple[dict[str, Plan], str]:
    """Every algorithm's plan, and which one trainmesh would choose."""
    choice = choose(graph, [NBYTES])
    found = {plan.algorithm: plan for plan in choice.candidates}
    for name in planners():
        if name not in found:
            asked = choose(graph, [NBYTES], only=name)
            found.update({p.algorithm: p for p in asked.candidates if p.algorithm == name})
    return {name: found[name] for name in planners() if name in found}, choice.chosen


def all_reduce(lab: Lab, plans: Mapping[str, Plan], rounds: int) -> dict[str, list[float]]:
    """Seconds of each plan in each round."""
    with tempfile.TemporaryDirectory() as folder:
        asked, result = Path(folder) / "plans.json", Path(folder) / "result.json"
        asked.write_bytes(msgspec.json.encode(plans))
        program = [str(ROOT / "benchmarks/jobs/allreduce.py"), str(asked), str(result)]
        done = run_job(
            lab,
            [*program, str(NBYTES), str(rounds)],
            env=ENVIRONMENT,
            launcher="torchrun",
            timeout_s=JOB_S,
        )
        if done.returncode or not result.exists():
            raise SystemExit("\n".join(done.output.values()))
        times: dict[str, list[float]] = json.loads(result.read_text())
        return times


def slowest_link(graph: LinkGraph) -> float:
    """In bytes/s."""
    return min(link.cost.bandwidth_bytes_per_s for link in graph.links)


def tcp_share(lab: Lab, graph: LinkGraph) -> float:
    """What one plain stream gets of the slowest link on its way."""
    src, dst = lab.hosts[0].name, lab.hosts[1].name
    path = graph.path(lab.hosts[0].ranks[0], lab.hosts[1].ranks[0])
    rate = min(link.cost.bandwidth_bytes_per_s for link in path)
    return stream_gbps(lab, src, dst) * 1e9 / 8 / rate


def report(name: str, rounds: int) -> dict[str, object]:
    file = ROOT / f"examples/lab/{name}.yaml"
    graph = load_file(file)
    plans, chosen = plans_for(graph)
    with Lab(file) as lab:
        share = tcp_share(lab, graph)
        times = all_reduce(lab, plans, rounds)
    bound_s = plans["native"].bound_s / share
    print(f"\n{name}: {SCENARIOS[name]}; bound {1e3 * bound_s:.0f} ms ({share:.1%} of the rate)")
    for algorithm, taken in times.items():
        pairs = zip(times["native"], taken, strict=True)
        ratio = spread([native / own for native, own in pairs], "x")
        mark = " <- trainmesh" if algorithm == chosen else ""
        factor = median(taken) / (plans[algorithm].predicted_s / share)
        print(
            f"  {algorithm:13s} {1e3 * median(taken):7.0f} ms  {bound_s / median(taken):6.1%} of "
            f"the bound  {ratio} of gloo's speed  measured/predicted {factor:.2f}{mark}",
            flush=True,
        )
    return {
        "scenario": name,
        "bound_s": bound_s,
        "tcp_share": share,
        "chosen": chosen,
        "all_reduce_s": times,
        "predicted_s": {algorithm: plan.predicted_s for algorithm, plan in plans.items()},
    }


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    print(describe())
    found = [report(name, args.rounds) for name in args.only or SCENARIOS]
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
