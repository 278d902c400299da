"""The router beside its peers, in one run: what it costs, and what becomes of requests.

python benchmarks/serving/run.py [--quick] [--routers a,b] [--scenarios x,y] [--json FILE]

Every router has the first CPU for itself; engines and load generator share the second one. Peers
are installed on first use (peers.py). An idle machine, please: what else ran is said. Scenarios are
``overhead`` and those of faults.py and queues.py; ``--quick`` takes two minutes and is for a look.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks.machine import describe
from benchmarks.serving import overhead
from benchmarks.serving.faults import FAULTS
from benchmarks.serving.figures import Figures, Rounds, judged, table, typical
from benchmarks.serving.others import Others
from benchmarks.serving.peers import Unavailable
from benchmarks.serving.programs import LOAD_CPU, certificate, compiled
from benchmarks.serving.queues import QUEUES
from benchmarks.serving.routers import ROUTERS
from benchmarks.serving.scenario import Bench, Scenario
from trainmesh.launcher.arguments import file_to_write
from trainmesh.launcher.output_file import write_output

OURS = "trainmesh"
SCENARIOS = {scenario.name: scenario for scenario in (*FAULTS, *QUEUES)}
Results = dict[str, Rounds | str]
QUICK_ROUTERS = [OURS, "haproxy", "vllm-router"]
QUICK_SCENARIOS = ["overhead", "slow", "disconnects"]


def say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def collect(
    names: Sequence[str], rounds: int, measure: Callable[[str, int], Figures], what: str
) -> Results:
    """Measures each in turn, ``rounds`` times over, so that a change of the machine meets all."""
    results: Results = {name: [] for name in names}
    for index in range(rounds):
        for name in names:
            have = results[name]
            if isinstance(have, str):
                continue
            print(f"{what} {index + 1}/{rounds}: {name}", file=sys.stderr, flush=True)
            try:
                have.append(measure(name, index))
            except (Unavailable, OSError) as error:
                results[name] = str(error)
    return results


def measured(results: Results) -> dict[str, Figures]:
    return {name: typical(r) for name, r in results.items() if not isinstance(r, str)}


def ahead(results: Mapping[str, Figures], scenario: Scenario) -> str:
    """Whether ours has the least of what counts, and who has less: some fail fast."""
    better = [
        f"{name} ({f[scenario.key]:.1f}"
        + (f", {f['failed']:.0f} failed)" if f.get("failed") else ")")
        for name, f in results.items()
        if f[scenario.key] < results[OURS][scenario.key]
    ]
    title = next((c.title for c in scenario.columns if c.name == scenario.key), scenario.key)
    return f"  {title}: " + (f"behind {', '.join(better)}" if better else "none has less")


def report_overhead(results: Results) -> None:
    say("", "## Overhead, one CPU", *table(overhead.COLUMNS, results, "router"))
    figures = measured(results)
    ours = figures.pop(OURS, None)
    if ours:
        say("", *judged(overhead.AIMS, ours, figures), *overhead.distances(ours, figures))


def report_scenario(scenario: Scenario, results: Results) -> None:
    say("", f"## {scenario.name}: {scenario.about}", *table(scenario.columns, results, "router"))
    figures = measured(results)
    if OURS in figures:
        say("", *judged(scenario.aims, figures[OURS], figures))
        say(ahead(figures, scenario))


def versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = ROUTERS[name].version()
        except Unavailable as error:
            found[name] = f"not here: {error}"
    return found


def run_overhead(names: Sequence[str], rounds: int, scale: float, folder: Path) -> Results:
    pem = certificate(folder)
    direct: dict[int, Figures] = {}

    def measure(name: str, index: int) -> Figures:
        router = None if name == overhead.DIRECT else ROUTERS[name]
        figures = overhead.measure(router, folder, pem, scale, direct.get(index, {}))
        if router is None:
            direct[index] = figures
        return figures

    return collect([overhead.DIRECT, *names], rounds, measure, "overhead")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--routers", type=lambda text: text.split(","))
    parser.add_argument("--scenarios", type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, help="3 of overhead and 1 of each scenario")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=file_to_write(".json"))
    chosen = parser.parse_args()
    chosen.routers = chosen.routers or (QUICK_ROUTERS if chosen.quick else list(ROUTERS))
    chosen.scenarios = chosen.scenarios or (
        QUICK_SCENARIOS if chosen.quick else ["overhead", *SCENARIOS]
    )
    for given, known in (
        (chosen.routers, [*ROUTERS]),
        (chosen.scenarios, ["overhead", *SCENARIOS]),
    ):
        for name in given:
            if name not in known:
                parser.error(f"there is no {name!r}; there are {', '.join(known)}")
    return chosen


def rounds(chosen: argparse.Namespace, usual: int) -> int:
    return int(chosen.rounds or (1 if chosen.quick else usual))


def run_part(part: str, chosen: argparse.Namespace, folder: Path) -> Results:
    """Measures and reports ``overhead`` or a scenario."""
    scale = 0.3 if chosen.quick else 1.0
    if part == "overhead":
        results = run_overhead(chosen.routers, rounds(chosen, 3), scale, folder)
        report_overhead(results)
        return results
    scenario = SCENARIOS[part]

    def measure(name: str, index: int) -> Figures:
        return scenario.run(Bench(ROUTERS[name], folder, scale, seed=index))

    results = collect(chosen.routers, rounds(chosen, 1), measure, part)
    report_scenario(scenario, results)
    return results


def main() -> int:
    chosen = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    for program in ("mock", "load"):
        compiled(program)
    found = versions(chosen.routers)
    os.sched_setaffinity(0, {LOAD_CPU})
    say(describe(), ", ".join(f"{name} {version}" for name, version in found.items()))
    everything: dict[str, Results] = {}
    foreign: dict[str, float] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trainmesh-bench-") as name:
        for part in chosen.scenarios:
            others = Others.start()
            everything[part] = run_part(part, chosen, Path(name))
            foreign[part] = others.share()
            say(f"  other processes had {foreign[part]:.0%} of the machine meanwhile")
    say("", f"{time.monotonic() - began:.0f} s")
    if chosen.json:
        document = {
            "machine": describe(),
            "versions": found,
            "others": foreign,
            "results": everything,
        }
        write_output(chosen.json, msgspec.json.encode(document), what="--json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
