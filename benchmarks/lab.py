"""All-reduce and step times on emulated clusters: plain gloo, trainmesh, every algorithm, bound.

    python benchmarks/lab.py [--only NAME] [--rounds N] [--steps N] [--json FILE]

Each scenario is a topology file of examples/lab. First every algorithm's plan sums 25 MB in turn,
in one run, against the backend's own all-reduce on the same group. Then, with --steps, the same
training script runs under plain torchrun and under trainmesh, which is told the file; the last
third of the steps counts. --dropping shows a link that drops and heals on the way. The bound is
that of the graph, lengthened by what TCP/IP leaves of a link's rate, measured by a plain stream.
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
from trainmesh.topology.planner import CALIBRATION, choose, planners
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
STREAM_S = 3.0
COMPUTE = {"without compute": 1, "with compute": 512}
DROPS, HEALS = 40, 120


def plans_for(graph: LinkGraph) -> tuple[dict[str, Plan], str]:
    """Every algorithm's plan, and which one trainmesh would choose."""
    choice = choose(graph, [NBYTES], calibration=CALIBRATION)
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


def tcp_share(lab: Lab, graph: LinkGraph) -> float:
    """What one plain stream gets of the slowest link on its way."""
    src, dst = lab.hosts[0].name, lab.hosts[1].name
    path = graph.path(lab.hosts[0].ranks[0], lab.hosts[1].ranks[0])
    rate = min(link.cost.bandwidth_bytes_per_s for link in path)
    return stream_gbps(lab, src, dst, int(rate * STREAM_S)) * 1e9 / 8 / rate


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


def steps(lab: Lab, num_steps: int, batch: int, launcher: str, *flags: str) -> list[float]:
    """Seconds of each step of the training script."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        program = [str(ROOT / "benchmarks/jobs/steps.py"), str(result), str(num_steps), str(batch)]
        done = run_job(
            lab, program, flags=flags, env=ENVIRONMENT, launcher=launcher, timeout_s=JOB_S
        )
        if done.returncode or not result.exists():
            raise SystemExit("\n".join(done.output.values()))
        times: list[float] = json.loads(result.read_text())
        return times


def report_steps(name: str, num_steps: int) -> None:
    """Plain DDP against trainmesh; an even number of runs, in turn."""
    with Lab(ROOT / f"examples/lab/{name}.yaml") as lab:
        for words, batch in COMPUTE.items():
            last = num_steps // 3
            plain = steps(lab, num_steps, batch, "torchrun")[-last:]
            ours = steps(lab, num_steps, batch, "trainmesh")[-last:]
            ratio = median(plain) / median(ours)
            print(
                f"  step {words}: torchrun {spread([1e3 * s for s in plain], ' ms')}, trainmesh "
                f"{spread([1e3 * s for s in ours], ' ms')}: {ratio:.3f}x",
                flush=True,
            )


def report_dropping() -> None:
    """A link drops to a quarter at step 40 and heals at step 120."""
    print("\ndropping: one link drops to 25 % at step 40, and heals at step 120")
    with Lab(ROOT / "examples/lab/dropping.yaml") as lab:
        for plan in ("native", "auto"):
            taken = steps(lab, HEALS + 80, 1, "trainmesh", "--plan", plan)
            parts = {
                "before": taken[5:DROPS],
                "dropped": taken[DROPS:HEALS],
                "last 20 dropped": taken[HEALS - 20 : HEALS],
                "last 20 healed": taken[-20:],
            }
            words = ", ".join(f"{k} {1e3 * median(v):.0f} ms" for k, v in parts.items())
            print(f"  --plan {plan}: step times {words}; {sum(taken):.0f} s in all", flush=True)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="0: none")
    parser.add_argument("--dropping", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    print(describe())
    found = []
    for name in args.only or ([] if args.dropping else SCENARIOS):
        found.append(report(name, args.rounds))
        if args.steps:
            report_steps(name, args.steps)
    if args.dropping:
        report_dropping()
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
