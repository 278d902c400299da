"""Run a check on several processes joined by gloo on this machine, and judge their answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

from trainmesh.hooks.testing.spec import RankResult, Spec
from trainmesh.wire import decode, encode

__all__ = ["run"]

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of a rank's result, which holds tensors of the largest size."""
STARTUP_S = 30.0
"""For importing torch on a busy machine."""
END_S = 5.0
"""For the others, once one has failed or all are done."""
POLL_S = 0.02
"""Between two looks whether ranks have answered."""
ROOT = Path(__file__).resolve().parents[2]
"""Where trainmesh is found in an uninstalled clone."""


def run(spec: Spec, limit_s: float) -> int:
    """Carry ``spec`` out on as many processes as its largest world size.

    Returns:
        The number of results that were compared.

    Raises:
        AssertionError: a requirement is not met, a process failed, or ``limit_s`` has passed.
    """
    with tempfile.TemporaryDirectory(prefix="trainmesh-") as name:
        folder = Path(name)
        (folder / "spec.json").write_bytes(encode(spec))
        ranks = range(max(spec.world_sizes))
        processes = [_start(folder, rank) for rank in ranks]
        try:
            late = _wait(folder, processes, limit_s + STARTUP_S)
        finally:
            for process in processes:
                process.kill()
                process.wait(END_S)
        answers = [_answer(folder, rank, processes[rank].returncode) for rank in ranks]
    failure = _failure(answers, late)
    if failure:
        raise AssertionError(f"{spec.kind} {spec.target}: {failure}")
    return len({case for answer in answers for case in answer.digests})


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    path = [str(ROOT), *(entry or str(Path.cwd()) for entry in sys.path)]
    with (folder / f"{rank}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "trainmesh.hooks.testing.rank", str(folder), str(rank)],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path),
                "OMP_NUM_THREADS": "1",
                **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _wait(folder: Path, processes: Sequence[subprocess.Popen[bytes]], limit_s: float) -> list[int]:
    """The ranks that did not end in time. Once one has failed, the others soon should."""
    deadline = monotonic() + limit_s
    running = dict(enumerate(processes))
    failed = False
    while running and monotonic() < deadline:
        sleep(POLL_S)
        for rank in [rank for rank, process in running.items() if process.poll() is not None]:
            answer = _answer(folder, rank, running.pop(rank).returncode)
            if not failed and (answer.failed or answer.error):
                failed = True
                deadline = min(deadline, monotonic() + END_S)
    return [] if failed else list(running)


def _answer(folder: Path, rank: int, status: int | None) -> RankResult:
    path = folder / f"{rank}.json"
    if path.exists():
        data = path.read_bytes()
        return decode(data, RankResult, what=f"rank {rank}", max_bytes=MAX_ANSWER_BYTES)
    if status == -signal.SIGKILL:  # by us
        return RankResult(error="was still busy")
    lines = (folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
    return RankResult(
        failed=f"its process ended with status {status}: {lines[-1] if lines else '-'}"
    )


def _failure(answers: Sequence[RankResult], late: Sequence[int]) -> str:
    """The most telling thing that went wrong; empty if nothing did."""
    by_time = sorted(enumerate(answers), key=lambda one: one[1].ended_ns)
    for rank, answer in by_time:
        if answer.failed:
            return f"rank {rank}: {answer.failed}"
    if late:
        return f"ranks {', '.join(map(str, late))} hang"
    for rank, answer in by_time:
        if answer.error:
            return f"rank {rank}: {answer.error}"
    return _difference(answers)


def _difference(answers: Sequence[RankResult]) -> str:
    """A case whose results are not the same on all ranks."""
    first: dict[str, tuple[int, str]] = {}
    for rank, answer in enumerate(answers):
        for case, found in answer.digests.items():
            other, expected = first.setdefault(case, (rank, found))
            if found != expected:
                return f"{case}: ranks {other} and {rank} have different results"
    return ""
