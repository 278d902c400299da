"""The wheel and the archive hold everything, and the wheel runs where no extra is installed.

Both are built once, of a copy, by the setuptools that is here. An environment without torch is one
of links to the libraries that the wheel's own metadata asks for, so nothing is downloaded.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
AT_ROOT = ["hooks", "launcher", "serving", "topology"]
FILES = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "trainmesh_command.py"]
GRAPH = ROOT / "examples/lab/one_slow_50.yaml"
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('.'))"
SERVE = """
version: 1
listen: 127.0.0.1:0
models:
  m:
    endpoints:
      - {url: "http://127.0.0.1:9001"}
"""

Said = subprocess.CompletedProcess[str]


def run(command: Sequence[str | Path], folder: Path) -> Said:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINMESH", "PYTHON"))}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def build(what: str, sources: Path) -> Path:
    """The wheel or sdist of ``sources``; made there."""
    done = run([sys.executable, "-W", "ignore", "-c", BUILD, f"build_{what}"], sources)
    assert done.returncode == 0, done.stderr
    return sources / done.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, without what was built before."""
    copy = tmp_path_factory.mktemp("sources")
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in ["trainmesh", *AT_ROOT]:
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="session")
def wheel(sources: Path) -> Path:
    return build("wheel", sources)


@pytest.fixture(scope="session")
def unpacked(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive's content."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", sources)) as archive:
        archive.extractall(folder, filter="data")
    (inside,) = folder.iterdir()
    return inside


def files_below(root: Path) -> set[str]:
    """Every file of the packages below ``root``, by the path that it has when installed."""
    found = set()
    for folder in ["trainmesh", *AT_ROOT]:
        for where, _, names in os.walk(root / folder):
            inside = Path(where).relative_to(root)
            at = inside if folder == "trainmesh" else "trainmesh" / inside
            found |= {str(at / name) for name in names if "__pycache__" not in inside.parts}
    return found | {"trainmesh_command.py"}


def test_the_wheel_has_every_module_and_every_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (top,) = (name for name in archive.namelist() if name.endswith("/top_level.txt"))
        top_level = archive.read(top).decode().split()
    expected = files_below(ROOT)
    assert len(expected) > 300
    assert {"trainmesh/py.typed", "trainmesh/launcher/site/sitecustomize.py"} <= expected
    assert names == expected
    assert top_level == ["trainmesh", "trainmesh_command"]


def test_the_archive_builds_the_same_wheel(unpacked: Path, wheel: Path) -> None:
    with zipfile.ZipFile(build("wheel", unpacked)) as second, zipfile.ZipFile(wheel) as first:
        assert sorted(second.namelist()) == sorted(first.namelist())


def closure(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """The distributions that ``requirements`` bring, with what those ask for, by name.

    Raises:
        PackageNotFoundError: one is not installed here.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    wanted = [(each.name, extra) for each in requirements for extra in ("", *each.extras)]
    while wanted:
        name, extra = wanted.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        found[canonicalize_name(name)] = distribution(name)
        for each in map(Requirement, distribution(name).requires or []):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                wanted += [(each.name, further) for further in ("", *each.extras)]
    return found


def link(distributions: Iterable[Distribution], folder: Path) -> None:
    """Links in ``folder`` to the modules of ``distributions`` and what is known of them."""
    folder.mkdir()
    for each in distributions:
        for file in each.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__", "/") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(each.locate_file(top))).resolve())


def metadata(wheel: Path, extra: str = "") -> list[Requirement]:
    """What the wheel asks for."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().split("\n\n")[0].splitlines()
    asked = [Requirement(line.partition(": ")[2]) for line in lines if "Requires-Dist" in line]
    return [each for each in asked if not each.marker or each.marker.evaluate({"extra": extra})]


def environment(wheel: Path, folder: Path, extra: str = "") -> Path:
    """A virtual environment with the wheel and what it asks for; its bin folder."""
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    bin_folder = folder / "venv" / "bin"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", bin_folder / "python", "-q"]
    done = run([*pip, "install", "--no-index", "--no-deps", wheel], folder)
    assert done.returncode == 0, done.stderr
    try:
        brought = closure(metadata(wheel, extra))
    except PackageNotFoundError as error:
        pytest.skip(f"not installed here: {error}")
    assert "torch" not in brought
    link(brought.values(), folder / "libraries")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(f"{folder / 'libraries'}\n")
    done = run([*pip, "check"], folder)
    assert done.returncode == 0, done.stdout
    return bin_folder


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(wheel, tmp_path_factory.mktemp("base"))


def test_the_base_has_no_torch_and_plans(base: Path, tmp_path: Path) -> None:
    assert run([base / "python", "-c", "import torch"], tmp_path).returncode == 1
    for command in (
        ["--version"],
        ["--help"],
        ["plan", "--graph", GRAPH],
        ["topology", "show", "--file", GRAPH],
    ):
        done = run([base / "trainmesh", *command], tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout


def test_the_base_holds_the_coordinator_and_its_store(base: Path, tmp_path: Path) -> None:
    code = "import trainmesh.coordinator.process, trainmesh.agent.process, trainmesh.store.etcd"
    done = run([base / "python", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["launch", "train.py"], "torch", "train"),
        (["lab", "run", "--topology", str(GRAPH), "train.py"], "torch", "train"),
        (["serve", "--config", "serve.yaml"], "uvloop", "serve"),
        (["topology", "import", "nvml"], "pynvml", "gpu"),
    ],
    ids=["launch", "lab", "serve", "nvml"],
)
def test_the_base_says_what_to_install(
    base: Path, tmp_path: Path, command: list[str], module: str, extra: str
) -> None:
    done = run([base / "trainmesh", *command], tmp_path)
    assert done.returncode == 2
    line = (
        f"trainmesh {command[0]} needs {module}; install it with: pip install 'trainmesh[{extra}]'"
    )
    assert done.stderr == f"trainmesh: error: {line}\n"


def test_doctor_tells_a_base_how_to_train(base: Path, tmp_path: Path) -> None:
    done = run([base / "trainmesh", "doctor"], tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "-> pip install 'trainmesh[train]'" in done.stdout


def test_a_router_needs_no_torch(wheel: Path, tmp_path: Path) -> None:
    bin_folder = environment(wheel, tmp_path, "serve")
    (tmp_path / "serve.yaml").write_text(SERVE)
    command: list[str | Path] = [
        bin_folder / "trainmesh",
        "serve",
        "--config",
        "serve.yaml",
        "--check",
    ]
    done = run(command, tmp_path)
    assert (done.returncode, done.stderr) == (0, "trainmesh serve: serve.yaml: fine\n")
