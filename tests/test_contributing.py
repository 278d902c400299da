"""The recipes of CONTRIBUTING.md, followed to the letter by what they say to write."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
HOOKS = ROOT / "docs/writing_a_hook.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

SUMS = """
import torch
import torch.distributed as dist
from trainmesh.hooks.executor import GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.timing import Mark
from trainmesh.topology.graph import host_graph
from trainmesh.topology.planner import choose

NUMEL = 1001
choice = choose(host_graph({"a": [0], "b": [1]}), [4 * NUMEL])
[plan] = [plan for plan in choice.candidates if plan.algorithm == choice.chosen]
assert plan.algorithm == "gather"

dist.init_process_group("gloo")
executor = load("gather")(plan, GroupFactory(dist.group.WORLD))
theirs = [torch.randn(NUMEL, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)]
buffer = theirs[dist.get_rank()].clone()
mark = Mark(0, buffer.nbytes)
executor.reduce(buffer, mark).wait()
assert torch.equal(buffer, theirs[0] + theirs[1])
assert mark.end_ns
executor.close()
del executor  # its group ends with its last reference
dist.destroy_process_group()
"""
"""What a rank of two does with the plan and the executor of the recipes."""


def recipe(title: str, page: Path = PAGE) -> list[tuple[str, str]]:
    """(language, text) of each block in the section of that title."""
    [section] = [s for s in page.read_text().split("\n## ") if s.startswith(f"{title}\n")]
    return FENCE.findall(section)


def install(folder: Path, name: str, points: str, version: str = "1") -> None:
    """What pip would leave beside the package's modules, from the entry points in TOML."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in tomllib.loads(points)["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {value}" for point, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def install_project(folder: Path, project: str) -> None:
    """The same, from a whole pyproject.toml."""
    about = tomllib.loads(project)["project"]
    install(folder, about["name"], project, about["version"])


def run(folder: Path, *arguments: str, timeout_s: float = 60) -> str:
    """What Python with ``arguments`` prints, where the packages in ``folder`` are installed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_a_scorer_in_three_steps(tmp_path: Path) -> None:
    (_, scorer), (toml, project), (_, test) = recipe("Add a scorer in three steps")
    assert toml == "toml"
    (tmp_path / "nearest_idle.py").write_text(scorer)
    (tmp_path / "test_nearest_idle.py").write_text(test)
    install_project(tmp_path, project)
    assert "1 passed" in run(tmp_path, *PYTEST, "test_nearest_idle.py")


def write_planner(folder: Path) -> str:
    """Step 1 and 2 of a planner, and its test's text."""
    (_, planner), (toml, project), (_, test) = recipe("Add a planner in three steps")
    assert toml == "toml"
    (folder / "gather.py").write_text(planner)
    install_project(folder, project)
    return test


def test_a_planner_in_three_steps(tmp_path: Path) -> None:
    (tmp_path / "test_gather.py").write_text(write_planner(tmp_path))
    assert "2 passed" in run(tmp_path, *PYTEST, "test_gather.py")

    [said] = re.findall(r"`trainmesh (plan --graph [^`]+)`", PAGE.read_text())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    listed = run(tmp_path, "-m", "trainmesh", *said.split())
    assert re.search(r"^\* gather +\d", listed, re.MULTILINE), listed
    assert "left out" not in listed


@pytest.mark.torch
def test_an_executor_in_three_steps(tmp_path: Path) -> None:
    """With the plan of the planner's recipe, two ranks get the sum that one would have made."""
    write_planner(tmp_path)
    (_, executor), (toml, points) = recipe("An executor", HOOKS)
    assert toml == "toml"
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/my_hook.py").write_text(executor)
    (tmp_path / "my_hook.py").write_text(executor)
    install(tmp_path, "my-hook", points)

    (_, console), *_ = recipe("Prove it first", HOOKS)
    prove, passed = console.splitlines()[:2]
    proven = run(tmp_path, *prove.removeprefix("$ python ").split(), "--world-sizes", "2")
    assert proven.split(" on ")[0] == passed.split(" on ")[0]

    (tmp_path / "sums.py").write_text(SUMS)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    run(tmp_path, *torchrun, "sums.py", timeout_s=100)
