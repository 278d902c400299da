"""The recipe for a built-in algorithm in CONTRIBUTING.md is true: one file and one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("trainmesh", "hooks", "launcher", "serving", "topology")

FILE = '''
"""relay: rank 0 gets everything from everyone, and sends the sum back."""

from trainmesh.types import Hop, Plan, Tree

__all__ = ["plan", "why_not"]


def why_not(graph, request):
    return "one rank has nobody to send to" if graph.world_size == 1 else None


def plan(graph, request):
    if why_not(graph, request) is not None:
        return None
    others = range(1, graph.world_size)
    up, down = (Hop(rank, 0) for rank in others), (Hop(0, rank) for rank in others)
    return Plan(
        algorithm="relay",
        world_size=graph.world_size,
        order=tuple(range(graph.world_size)),
        trees=(Tree(0, 1.0, tuple(up), tuple(down)),),
        num_chunks=1,
    )
'''
LINE = '    FOREST = "forest"\n', '    FOREST = "forest"\n    RELAY = "relay"\n'
USE = """
import json, sys
from tests.topology.graphs import star
from trainmesh.hooks.executors.messages import by_messages
from trainmesh.hooks.executors.registry import load
from trainmesh.plan.shape import check_shape
from trainmesh.topology.planner import choose, why_not
from trainmesh.topology.request import PlanRequest
from trainmesh.wire import decode, encode
from trainmesh.types import Plan

choice = choose(star([10] * 4, alpha_us=5), [8], only="relay")
[plan] = [plan for plan in choice.candidates if plan.algorithm == "relay"]
check_shape(decode(encode(plan), Plan, what="plan"), 4)
json.dump({
    "chosen": choice.chosen,
    "predicted_s": plan.predicted_s,
    "reason": plan.reason,
    "refusal": why_not("relay", star([10]), PlanRequest(8)),
    "is_carried_out": load("relay") is by_messages,
}, sys.stdout)
"""


@pytest.mark.torch
def test_a_new_algorithm_is_one_file_and_one_line(tmp_path: Path) -> None:
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    (tmp_path / "tests/topology").mkdir(parents=True)
    shutil.copy(ROOT / "tests/topology/graphs.py", tmp_path / "tests/topology")
    (tmp_path / "topology/planners/relay.py").write_text(FILE)
    types = tmp_path / "trainmesh/types.py"
    assert types.read_text().count(LINE[0]) == 1
    types.write_text(types.read_text().replace(*LINE))

    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["chosen"] == "relay"
    # Three messages into rank 0 and three out of it: 10 us of links and 100 us of its own each.
    assert found["predicted_s"] == pytest.approx(6 * 110e-6, rel=1e-3)
    assert found["reason"].startswith("relay rooted at rank 0 is predicted")
    assert found["refusal"] == "one rank has nobody to send to"
    assert found["is_carried_out"]

    command = [sys.executable, "-m", "trainmesh", "launch", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "relay" in done.stdout
