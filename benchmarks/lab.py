"""All-reduce and step times on emulated clusters: plain gloo, trainmesh, every algorithm, bound.

    python benchmarks/lab.py [--only NAME] [--rounds N] [--steps N] [--json FILE]

Each scenario is a topology file of examples/lab. First every algorithm's plan sums 25 MB in turn,
in one run, against the backend's own all-reduce; then it carries out the buckets of training
steps, without compute and with. With --steps, the same training script is run by plain torchrun
and by trainmesh launch, which is told the file and begins on native; the last third of the steps
counts. --dropping shows a link that drops and heals on the way. The bound is that of the graph,
lengthened by what TCP/IP leaves of a link's rate, measured by a plain stream.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec

from benchmarks.machine import describe, spread
from trainmesh.launcher.arguments import file_to_write
from trainmesh.launcher.lab import Lab, run_job, stream_gbps
from trainmesh.launcher.output_file import write_output
from trainmesh.topology.document import load_file
from trainmesh.topology.graph import LinkGraph
from trainmesh.topology.planner import CALIBRATION, choose, planners
from trainmesh.topology.request import LIVE
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
JOB_S = 900
STREAM_S = 3.0
COMPUTE = {"without compute": 1, "with compute": 512}
"""Words, and the batch of jobs/steps.py."""
DROPS, HEALS = 40, 120

Times = dict[str, list[float]]


def plans_for(graph: LinkGraph) -> tuple[dict[str, Plan], str]:
    """Every algorithm's plan, and which one trainmesh would choose."""
    choice = choose(graph, [NBYTES], executors=LIVE, calibration=CALIBRATION)
    found = {plan.algorithm: plan for plan in choice.candidates}
    for name in planners():
        if name not in found:
            asked = choose(graph, [NBYTES], executors=LIVE, only=name)
            found.update({p.algorithm: p for p in asked.candidates if p.algorithm == name})
    return {name: found[name] for name in planners() if name in found}, choice.chosen


def run(
    lab: Lab, job: str, args: Sequence[str], launcher: str, flags: Sequence[str] = ()
) -> object:
    """What a job of benchmarks/jobs writes; ``RESULT`` among ``args`` is its file."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        given = [str(result) if arg == "RESULT" else arg for arg in args]
        program = [str(ROOT / "benchmarks/jobs" / job), *given]
        done = run_job(
            lab, program, flags=flags, env=ENVIRONMENT, launcher=launcher, timeout_s=JOB_S
        )
        if done.returncode or not result.exists():
            raise SystemExit("\n".join(done.output.values()))
        return json.loads(result.read_text())


def in_turn(lab: Lab, plans: Mapping[str, Plan], rounds: int) -> tuple[Times, dict[str, Times]]:
    """Seconds of all-reduces, and of steps by batch, of each plan in each round."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "plans.json"
        asked.write_bytes(msgspec.json.encode(plans))
        alone = run(
            lab, "allreduce.py", [str(asked), "RESULT", str(NBYTES), str(rounds)], "torchrun"
        )
        batches = [str(batch) for batch in COMPUTE.values()]
        steps = run(lab, "forced.py", [str(asked), "RESULT", str(rounds), *batches], "torchrun")
        return alone, steps  # type: ignore[return-value]


def tcp_share(lab: Lab, graph: LinkGraph) -> float:
    """What one plain stream gets of the slowest link on its way."""
    src, dst = lab.hosts[0].name, lab.hosts[1].name
    path = graph.path(lab.hosts[0].ranks[0], lab.hosts[1].ranks[0])
    rate = min(link.cost.bandwidth_bytes_per_s for link in path)
    return stream_gbps(lab, src, dst, int(rate * STREAM_S)) * 1e9 / 8 / rate


def report(name: str, rounds: int, num_steps: int) -> dict[str, object]:
    file = ROOT / f"examples/lab/{name}.yaml"
    graph = load_file(file)
    plans, chosen = plans_for(graph)
    with Lab(file) as lab:
        share = tcp_share(lab, graph)
        alone, steps = in_turn(lab, plans, rounds)
        bound_s = plans["native"].bound_s / share
        print(
            f"\n{name}: {SCENARIOS[name]}; bound {1e3 * bound_s:.0f} ms (TCP gets {share:.1%} of "
            f"the rate)\n  {'':13s} {'all-reduce of 25 MB':>31s}  meas/pred  "
            + "  ".join(f"{'step ' + words:>28s}" for words in COMPUTE)
        )
        for algorithm, taken in alone.items():
            factor = median(taken) / (plans[algorithm].predicted_s / share)
            cells = [
                f"{1e3 * median(taken):7.0f} ms {bound_s / median(taken):6.1%} of bound "
                f"{_ratio(alone, algorithm)}",
                f"{factor:9.2f}",
                *(
                    f"{1e3 * median(times[algorithm]):13.0f} ms {_ratio(times, algorithm):>12s}"
                    for times in steps.values()
                ),
            ]
            mark = " <- trainmesh" if algorithm == chosen else ""
            print(f"  {algorithm:13s} {'  '.join(cells)}{mark}", flush=True)
        launched = launched_steps(lab, num_steps) if num_steps else {}
    return {
        "scenario": name,
        "bound_s": bound_s,
        "tcp_share": share,
        "chosen": chosen,
        "all_reduce_s": alone,
        "step_s": dict(zip(COMPUTE, steps.values(), strict=True)),
        "launched_step_s": launched,
        "predicted_s": {algorithm: plan.predicted_s for algorithm, plan in plans.items()},
    }


def _ratio(times: Times, algorithm: str) -> str:
    """How many times as fast as native, round by round."""
    pairs = zip(times["native"], times[algorithm], strict=True)
    ratios = [native / own for native, own in pairs]
    return f"{median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f})"


def launched_steps(lab: Lab, num_steps: int) -> dict[str, dict[str, list[float]]]:
    """Plain DDP against trainmesh: torchrun, trainmesh, torchrun again."""
    found = {}
    last = num_steps // 3
    for words, batch in COMPUTE.items():
        times: Times = {"torchrun": [], "trainmesh": []}
        for launcher, count in (("torchrun", last), ("trainmesh", num_steps), ("torchrun", last)):
            taken = run(lab, "steps.py", ["RESULT", str(count + 3), str(batch)], launcher)
            times[launcher] += taken[-last:]  # type: ignore[index]
        ratio = median(times["torchrun"]) / median(times["trainmesh"])
        by = ", ".join(
            f"{who} {spread([1e3 * s for s in taken], ' ms')}" for who, taken in times.items()
        )
        print(f"  step {words}: {by}: {ratio:.3f}x", flush=True)
        found[words] = times
    return found


def report_dropping() -> dict[str, Times]:
    """A link drops to a quarter at step 40 and heals at step 120."""
    print("\ndropping: one link drops to 25 % at step 40, and heals at step 120")
    found: dict[str, Times] = {}
    with Lab(ROOT / "examples/lab/dropping.yaml") as lab:
        for plan in ("native", "auto"):
            args = ["RESULT", str(HEALS + 80), "1"]
            taken: list[float] = run(lab, "steps.py", args, "trainmesh", ["--plan", plan])  # type: ignore[assignment]
            parts = {
                "before": taken[5:DROPS],
                "dropped": taken[DROPS:HEALS],
                "last 20 dropped": taken[HEALS - 20 : HEALS],
                "last 20 healed": taken[-20:],
            }
            words = ", ".join(f"{k} {1e3 * median(v):.0f} ms" for k, v in parts.items())
            print(f"  --plan {plan}: step times {words}; {sum(taken):.0f} s in all", flush=True)
            found[plan] = parts
    return found


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="0: none")
    parser.add_argument("--dropping", action="store_true")
    parser.add_argument("--json", type=file_to_write(".json"))
    args = parser.parse_args(argv)
    print(describe())
    found: list[object] = []
    for name in args.only or ([] if args.dropping and not args.steps else SCENARIOS):
        found.append(report(name, args.rounds, args.steps))
    if args.dropping:
        found.append(report_dropping())
    if args.json:
        write_output(args.json, json.dumps(found, indent=2).encode(), what="--json")


if __name__ == "__main__":
    main()
