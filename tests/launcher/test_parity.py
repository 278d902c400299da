"""``trainmesh launch`` does what ``torchrun`` does, for scripts that are not about training."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launchjob import JOBS, LAUNCH, TORCHRUN, Place

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

PROBE = str(JOBS / "probe.py")
FAILS = str(JOBS / "fails.py")


def both(
    here: Place, *arguments: str, stdin: str = "", **env: str
) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """Run under torchrun and under trainmesh launch; their results are in plain/ and ours/."""
    done = []
    for name, command in (("plain", TORCHRUN), ("ours", LAUNCH)):
        out = here.path / name
        out.mkdir()
        words = [argument.replace("{out}", str(out)) for argument in arguments]
        done.append(here.run(*command, *words, stdin=stdin, timeout_s=60, OUT=str(out), **env))
    plain, ours = done
    assert ours.returncode == plain.returncode, ours.stderr
    assert sorted(ours.stdout.splitlines()) == sorted(plain.stdout.splitlines())
    assert here.processes() == {}
    return plain, ours


def results(here: Place, name: str) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (here.path / name).glob("*.json")}


def torchruns_help() -> str:
    from torch.distributed.run import get_args_parser

    return get_args_parser().format_help()


@pytest.mark.parametrize(
    "arguments",
    [
        [PROBE, "a", "--nnodes", "-m"],
        ["--standalone", "-m", "tests.jobs.probe", "a", "--help"],
        ["--run-path", PROBE, "a"],
        ["--no-python", "/usr/bin/env", sys.executable, PROBE, "a"],
        ["--virtual-local-rank", "--role", "trainer", PROBE],
        ["--max-restarts", "2", PROBE, "--fail-first"],
    ],
    ids=["script", "module", "run-path", "no-python", "flags", "restart"],
)
def test_a_worker_sees_what_it_sees_under_torchrun(here: Place, arguments: list[str]) -> None:
    if "--virtual-local-rank" in arguments and "--virtual-local-rank" not in torchruns_help():
        pytest.skip("an older torchrun has no --virtual-local-rank")
    both(here, "--nproc-per-node", "2", *arguments, stdin="words\n")
    plain, ours = results(here, "plain"), results(here, "ours")
    assert len(plain) == (4 if "--fail-first" in arguments else 2)
    assert ours == plain
    # Torchrun's --run-path workers are children of multiprocessing, which have no input.
    assert plain["0-0.json"]["stdin"] == ("" if "--run-path" in arguments else "words\n")
    assert len(here.files()) == 1  # torchrun's own


def logs(folder: Path) -> dict[str, str]:
    """Torchrun's log files below their unique folder, with their contents."""
    (unique,) = (path for path in folder.iterdir() if path.is_dir())
    found = {}
    for path in unique.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(unique))] = path.read_text()
    return found


@pytest.mark.parametrize("flag", ["-r", "-t"])
def test_redirected_output(here: Place, flag: str) -> None:
    both(here, "--nproc-per-node", "2", flag, "3", "--log-dir", "{out}", PROBE)
    plain, ours = logs(here.path / "plain"), logs(here.path / "ours")
    assert plain["attempt_0/1/stdout.log"] == "out of rank 1\n"
    assert ours == plain


def test_a_worker_with_an_error_file_keeps_it(here: Place) -> None:
    done = here.run(*LAUNCH, "--nproc-per-node", "2", FAILS, "--record")
    (path,) = re.findall(r"error_file: (/\S+)", done.stderr)
    assert "rank 1 has a reason" in Path(path).read_text()
