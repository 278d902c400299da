"""``--compression auto`` in a real job: ranks time codecs, the coordinator tries what pays, and
steps on slow links are shorter."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launchjob import JOBS
from trainmesh.launcher.lab import Lab, run_job


@pytest.mark.root
@pytest.mark.torch
@pytest.mark.etcd
@pytest.mark.usefixtures("lab_here")
def test_auto_compresses_on_slow_links(star: Callable[..., Path], tmp_path: Path) -> None:
    flags = ["--compression", "auto", "--cadence", "2", "--report", str(tmp_path / "out")]
    with Lab(star({"h0": 100, "h1": 100})) as lab:
        done = run_job(
            lab, [str(JOBS / "compressible.py")], flags=flags, env={"STEPS": "160"}, timeout_s=100
        )
    assert done.returncode == 0, done.output
    assert "alike True" in done.output["h0"]
    run = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    plain, half = run["plans"][:2]
    texts = [event["text"] for event in run["events"]]
    assert any("all 2 ranks switched to native, bf16" in text for text in texts), texts
    # 84 ms are what 1.05 MB take at 100 Mbit/s.
    assert half["step_time_s"] < 0.8 * plain["step_time_s"], texts
