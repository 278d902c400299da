"""What was asked for at a launch, from its first steps to its report and its last line."""

import json

import pytest

from tests.launchjob import JOBS, LAUNCH, place

pytestmark = [pytest.mark.torch, pytest.mark.etcd]


def test_a_job_of_a_few_steps_gets_what_it_asked_for() -> None:
    """Nothing has been measured when the plan comes, and 12 steps are fewer than a cadence. The
    micro-steps before a synchronised one are part of its computation, not of the rest."""
    flags = ["--nproc-per-node", "2", "--plan", "tree", "--compression", "bf16"]
    with place() as here:
        report = here.path / "report"
        done = here.run(*LAUNCH, *flags, "--report", str(report), str(JOBS / "asked.py"))
        assert done.returncode == 0, done.stderr
        run = json.loads((report / "report.json").read_text())["run"]
    assert "asked for" not in "".join(line for line in done.stderr.splitlines() if "never" in line)
    assert run["num_steps"] == 12
    assert [(item["value"], item["since_step"] <= 9) for item in run["asked"]] == [
        ("tree", True),
        ("bf16", True),
    ]
    assert run["unmet"] == []
    last = run["plans"][-1]
    assert (last["algorithm"], last["codec"], last["last_step"]) == ("tree", "bf16", 11)
    assert run["split"]["compute_s"] + run["split"]["hidden_s"] >= 3 * 0.04


def test_a_file_store_is_gone_after_the_job() -> None:
    """The next run would read what this one has left in it, and hang: whoever has a group has the
    store, which removes its file when the last one lets go."""
    with place() as here:
        store, report = here.path / "store", here.path / "report"
        flags = ["--nproc-per-node", "2", "--plan", "tree", "--report", str(report)]
        done = here.run(*LAUNCH, *flags, str(JOBS / "asked.py"), INIT=f"file://{store}")
        assert done.returncode == 0, done.stderr
        assert json.loads((report / "report.json").read_text())["run"]["unmet"] == []
        assert not store.exists()


def test_a_job_that_never_had_it_says_so_in_its_last_line_and_report() -> None:
    flags = ["--nproc-per-node", "2", "--plan", "tree", "--progress", "off"]
    with place() as here:
        report = here.path / "report"
        done = here.run(*LAUNCH, *flags, "--report", str(report), str(JOBS / "says.py"), "none")
        assert done.returncode == 0, done.stderr
        told = json.loads((report / "report.json").read_text())
    said = [line for line in done.stderr.splitlines() if "tree was asked for" in line]
    assert len(said) == 1
    assert said[0].startswith("trainmesh: --plan tree was asked for")
    if told["run"]["unmet"]:  # a coordinator that was up before the script had ended
        assert said[0] == f"trainmesh: {told['run']['unmet'][0]}"
        assert "never in force: the job ended after 0 steps" in said[0]
        assert "tree was asked for but never in force" in json.dumps(told["headline"])
