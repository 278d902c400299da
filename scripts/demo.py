"""The demo: one script under plain torchrun and under trainmesh launch, while a NIC falls.

    .venv/bin/python -m scripts.demo [--topology FILE] [--steps N] [REPORT]

Four hosts of a lab (docs/lab.md) train; when the topology file's timeline says so, one NIC falls
to a quarter, and nobody is told: trainmesh has to notice, measure and plan anew. Both runs are of
the same steps in the same network, one after the other. The script writes down when each step
ended; these are the times that are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.demo_figures import figures, moved_plan, newest_step_s, step_ends_ns, summary
from trainmesh.errors import ConfigError, TrainmeshError
from trainmesh.launcher.lab.job import LabJob, Launcher, job_command
from trainmesh.launcher.lab.lab import Lab
from trainmesh.launcher.lab.layout import Host, load_layout
from trainmesh.launcher.lab.progress import JobProgress
from trainmesh.launcher.lab.timeline import Timeline, words
from trainmesh.launcher.report.report import load_report
from trainmesh.launcher.run import signals
from trainmesh.topology.document import LinkChange
from trainmesh.units import duration

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "chars.py"
SIZES = ["--batch", "2", "--context", "32"]
"""So little to compute that the network, not two cores, is what a step waits for."""
STEPS = 200
"""Of which trainmesh needs some 40 after the fall to notice, measure and move."""
SAY_EVERY_S = 3.0
MAX_LAST_LINES = 5
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
NAMES = {Launcher.TORCHRUN: "torchrun", Launcher.TRAINMESH: "trainmesh launch"}


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("report", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("--topology", type=Path, default=ROOT / "examples" / "lab" / "falling.yaml")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    try:
        with signals.raising():
            compare(args.topology, args.steps, args.report)
    except TrainmeshError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        say(f"error: {error.filename or 'the demo'}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        signals.end_by(signal.SIGINT)
    except signals.Ended as error:
        signals.end_by(error.number)
    return 0


def compare(topology: Path, num_steps: int, report: Path) -> None:
    """Run both, and say what came of it.

    Raises:
        TrainmeshError: a run failed, the link did not fall, or trainmesh did not move.
    """
    fall = falling(topology)
    fall_step = fall.at_step or 0
    if num_steps <= fall_step:
        raise ConfigError(f"--steps {num_steps}: the link falls at step {fall_step}")
    report.mkdir(parents=True, exist_ok=True)
    (report / "report.json").unlink(missing_ok=True)  # of an earlier demo
    say(
        f"four hosts with equal NICs; at step {fall_step} of {num_steps} one falls to a quarter, "
        "and nobody is told; first plain torchrun, then trainmesh launch"
    )
    plain = run(topology, Launcher.TORCHRUN, num_steps, report)
    ours = run(topology, Launcher.TRAINMESH, num_steps, report)
    try:
        moved = moved_plan(load_report(report).run.plans, fall_step)
    except TrainmeshError as error:
        raise TrainmeshError(f"{error}; trainmesh report {report} says why") from error
    before_and_after = [figures(ends, fall_step, moved.first_step) for ends in (plain, ours)]
    say(summary(words(fall), fall_step, moved, *before_and_after))
    say(f"open {report}/report.html, or trainmesh report {report}, for how it got there")


def falling(topology: Path) -> LinkChange:
    """The one change of the file's timeline.

    Raises:
        ConfigError: it is none of a bandwidth at a step, or there are others.
    """
    timeline = load_layout(topology).timeline
    if len(timeline) != 1 or not timeline[0].at_step or not timeline[0].bandwidth_bytes_per_s:
        raise ConfigError(
            f"{topology}: the demo's timeline is one bandwidth_mbps at one at_step above 0"
        )
    return timeline[0]


def run(topology: Path, launcher: Launcher, num_steps: int, report: Path) -> list[int]:
    """Run the script in a lab of its own; its lines and times go to files beside the report.

    Returns:
        When each step ended, in ns.

    Raises:
        TrainmeshError: it failed, or ended before the link fell.
    """
    name, log, times = NAMES[launcher], report / f"{launcher}.log", report / f"{launcher}.times"
    times.write_bytes(b"")  # there may be an earlier demo's
    flags = ["--report", str(report)] if launcher is Launcher.TRAINMESH else []
    watch = Watch(name, num_steps)
    with Lab(topology) as lab, log.open("wb") as file:
        watch.tick()
        program = [str(SCRIPT), "--steps", str(num_steps), *SIZES, "--times", str(times)]
        commands = [
            job_command(lab, host, launcher, flags if host.index == 0 else [], program)
            for host in lab.hosts
        ]
        fallen: list[str] = []

        def fell(text: str) -> None:
            fallen.append(text)
            say(f"{name}: {text}")

        timeline = Timeline(lab, fell)
        with progress_of(lab, launcher) as progress, started(lab, commands, file) as job:

            def tick() -> None:
                watch.ends_ns = step_ends_ns(times.read_text())
                for step, end_ns in enumerate(watch.ends_ns):
                    timeline.pace.add(step, end_ns)
                timeline.tick()
                progress.tick()
                watch.tick()

            code = job.wait(tick=tick)
    ends_ns = step_ends_ns(times.read_text())
    if code:
        last = " / ".join(log.read_text(errors="replace").splitlines()[-MAX_LAST_LINES:])
        raise TrainmeshError(f"{name} ended with exit code {code}; {log} ends with: {last}")
    if not fallen or len(ends_ns) != num_steps:
        raise TrainmeshError(
            f"{name} ended with {len(ends_ns)} of {num_steps} steps written down, and the link "
            f"{'fell' if fallen else 'did not fall'}; see {log}"
        )
    return ends_ns


@contextlib.contextmanager
def started(lab: Lab, commands: list[list[str]], file: IO[bytes]) -> Iterator[LabJob]:
    """The job, ended whatever happens: a clean-up that a signal has begun runs to its end."""

    def log(host: Host, line: bytes) -> None:
        file.write(f"{host.name} | ".encode() + line)

    job = LabJob(lab, commands, ENVIRONMENT, log)
    try:
        yield job
    except BaseException:
        signals.hold()
        raise
    finally:
        job.stop()


@contextlib.contextmanager
def progress_of(lab: Lab, launcher: Launcher) -> Iterator[JobProgress]:
    """What the coordinator says, as it comes; of torchrun there is nothing to show."""
    progress = JobProgress(lab, "auto" if launcher is Launcher.TRAINMESH else "off")
    try:
        yield progress
    finally:
        progress.close()


class Watch:
    """Says every few seconds how far a run is."""

    def __init__(self, name: str, num_steps: int) -> None:
        self.ends_ns: list[int] = []
        self._name = name
        self._num_steps = num_steps
        self._begin_s = time.monotonic()
        self._next_s = self._begin_s

    def tick(self) -> None:
        """Say it, if it is time to."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + SAY_EVERY_S
        step_s = newest_step_s(self.ends_ns)
        where = f"starting, {now_s - self._begin_s:.0f} s"
        if step_s is not None:
            where = f"step {len(self.ends_ns)} of {self._num_steps}, {duration(step_s)} a step"
        if len(self.ends_ns) == self._num_steps:
            where = f"all {self._num_steps} steps are done, ending"
        say(f"{self._name}: {where}")


def say(text: str) -> None:
    """One line of the demo, at once."""
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
