"""Exit codes, and what is said, of ``torchrun`` and ``trainmesh launch`` side by side."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.run import main as torchrun_main

from tests.launchjob import JOBS, LAUNCH, TORCHRUN, Place
from trainmesh.launcher.cli import main

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

ENDS = str(JOBS / "ends.py")
TABLE = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"


Ran = tuple[subprocess.Popen[str], Path]


def start_both(here: Place, command: str, *, shell: str = "", **env: str) -> list[Ran]:
    ran = []
    for name, launcher in (("plain", TORCHRUN), ("ours", LAUNCH)):
        folder = here.path / name
        folder.mkdir()
        words = shlex.join([*launcher, *shlex.split(command)])
        # exec: the shell becomes the launcher where there is no pipe
        text = f"exec {words} {shell}" if "|" not in shell else f"{words} {shell}"
        variables = {**env, "TORCHELASTIC_ERROR_FILE": str(folder / "error.json")}
        process = here.start("bash", "-c", f"set -o pipefail; {text}", **variables)
        ran.append((process, folder))
    return ran


def seen(ran: Ran) -> dict[str, object]:
    """What is to be equal: code, output, kinds of words on stderr, the summary, the error file."""
    process, folder = ran
    out, err = process.communicate(timeout=90)
    summary = err[err.index("\n====") :] if "\n====" in err else ""
    error_file = folder / "error.json"
    message = json.loads(error_file.read_text())["message"] if error_file.exists() else None
    return {
        "code": process.returncode,
        "out": sorted(out.splitlines()),
        "table": TABLE in err,
        "torchrun's traceback": 'torch/distributed/run.py", line' in err,
        "worker's": re.findall(r"^(?:ValueError: .*|some words|BrokenPipeError.*)$", err, re.M),
        "summary": re.sub(r"\S+/error.json|\d{3,}|\d\d:\d\d:\d\d", "*", summary).split(),
        "error file": message["message"] if isinstance(message, dict) else message,
    }


def compare(here: Place, ran: list[Ran]) -> dict[str, object]:
    plain, ours = map(seen, ran)
    assert ours == plain
    assert here.processes() == {}
    return ours


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{ENDS} well", 0),
        (f"{ENDS} raise", 1),
        (f"{ENDS} 3", 1),
        (f"{ENDS} words", 1),
        (f"{ENDS} _exit", 1),
        (f"{ENDS} kill", 1),
        (f"--standalone --max-restarts 1 {ENDS} raise", 1),
        ("-m tests.jobs.ends raise", 1),
        (f"--run-path {ENDS} raise", 1),
        ("--no-python false", 1),
        (f"--no-python {sys.executable} {ENDS} raise", 1),
        (f"-r 3 --log-dir logs {ENDS} raise", 1),
        (f"--nproc-per-node 2 -t 3 {JOBS / 'fails.py'} --record", 1),
    ],
)
def test_a_worker_ends(here: Place, command: str, code: int) -> None:
    found = compare(here, start_both(here, command))
    assert found["code"] == code
    assert found["table"] == (code != 0)


@pytest.mark.parametrize(
    ("shell", "how", "code"),
    [
        (">&-", "well", 0),
        ("2>&-", "well", 0),
        ("2>&-", "raise", 1),
        ("<&- >&- 2>&-", "well", 0),
        (">/dev/full", "well", 1),  # the worker's print fails
        ("2>/dev/full", "raise", 1),
        ("| head -1", "print", 1),
        ("| true", "well", 1),  # the reader has gone before the first line
    ],
)
def test_a_standard_stream_is_closed_or_full(here: Place, shell: str, how: str, code: int) -> None:
    assert compare(here, start_both(here, f"{ENDS} {how}", shell=shell))["code"] == code


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGTERM, False),
        (signal.SIGHUP, False),
        (signal.SIGQUIT, False),
        (signal.SIGINT, True),
        (signal.SIGINT, False),
    ],
)
def test_a_signal_ends_the_run(here: Place, number: signal.Signals, group: bool) -> None:
    ran = start_both(here, f"{ENDS} wait")
    for process, _ in ran:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    for process, _ in ran:
        (os.killpg if group else os.kill)(process.pid, number)
    plain, ours = map(seen, ran)
    assert ours["code"] == plain["code"] == 1
    assert str(ours["error file"]).startswith("SignalException")
    assert plain["torchrun's traceback"]
    assert not ours["torchrun's traceback"]  # a line says it
    assert here.processes() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_torchrun_handles_it(here: Place, number: signal.Signals) -> None:
    """The process ends by the signal, as a Python process does, and without a word of Python's.
    Plain torchrun is not asked: it loses a Ctrl-C that comes within a callback of its imports."""
    process = here.start(*LAUNCH, *shlex.split(f"{ENDS} wait"))
    time.sleep(0.3)  # in the imports; later is no fault, but tests less
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -number
    assert err == ""


# What torchrun refuses: its parser with 2, anything later with 1.
@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ("", 2),
        (f"--nonsense {ENDS}", 2),
        (f"--max-restarts x {ENDS}", 2),
        (f"--start-method x {ENDS}", 2),
        (f"--nproc-per-node many {ENDS}", 1),
        (f"--nproc-per-node gpu {ENDS}", 1),
        (f"--nnodes 0 {ENDS}", 1),
        (f"--nnodes 2:1 {ENDS}", 1),
        (f"--nnodes x {ENDS}", 1),
        (f"--max-restarts=-1 {ENDS}", 1),
        (f"--nproc-per-node 0 {ENDS}", 1),
        (f"--nproc-per-node=-1 {ENDS}", 1),
        (f"--monitor-interval 0 {ENDS}", 1),
        (f"-r 9 {ENDS}", 1),
        (f"--rdzv-conf x {ENDS}", 1),
        (f"--local-ranks-filter x {ENDS}", 1),
        (f"--logs-specs x {ENDS}", 1),
        ("--no-python -m this", 1),
        ("--no-python no-such-program", 1),
    ],
)
def test_what_torchrun_refuses(
    flags: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("plain", "ours"):
        error_file = tmp_path / name
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_file))
        words = shlex.split(flags)
        ended: object
        try:
            ended = torchrun_main(words) if name == "plain" else main(["launch", *words])
        except SystemExit as stop:
            ended = stop.code
        except Exception:
            ended = 1  # Python's code for it
        written = json.loads(error_file.read_text())["message"] if error_file.exists() else {}
        found.append((ended, written.get("message", "")))
        err = capfd.readouterr().err
    plain, ours = found
    assert ours[0] == plain[0] == code
    if plain[1] == "AssertionError: ":
        assert ours[1].startswith("ValueError: --")  # torchrun has no words for it
    elif "no-such-program" not in flags:
        assert ours[1] == plain[1]
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("flags", ["no-such.py", "-m no_such_module", "."])
def test_there_is_no_such_script(here: Place, flags: str) -> None:
    plain, ours = map(seen, start_both(here, flags))
    assert ours["code"] == plain["code"] == 1
    assert not ours["table"]  # a line says it, and nothing was started
