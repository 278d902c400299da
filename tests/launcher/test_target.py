"""Whether there is something to run."""

import os
import sys
from pathlib import Path

import pytest

from trainmesh.launcher.run.target import NothingToRun, check_module, check_program, check_script


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("tm_pkg/sub", "tm_space/inner", "empty"):
        (tmp_path / name).mkdir(parents=True)
    explode = "raise SystemExit('imported')"
    for name in (
        *("tm_pkg/__init__.py", "tm_pkg/run.py", "tm_pkg/sub/__init__.py"),
        *("tm_pkg/sub/__main__.py", "tm_space/inner/run.py", "tm_single.py", "app/__main__.py"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(explode)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("tm_single", "tm_pkg.run", "tm_pkg.sub", "tm_space.inner.run", "json.tool", "this"),
        *("app", "trainmesh", "trainmesh.launcher.cli"),
    ],
)
def test_modules_that_can_be_run(project: Path, name: str) -> None:
    before = set(sys.modules)
    check_module(name)
    assert not {module for module in set(sys.modules) - before if module.startswith("tm_")}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tm_missing", "no module named 'tm_missing'"),
        ("tm_pkg.missing", "no module named 'tm_pkg.missing'"),
        ("tm_single.run", "'tm_single' is not a package"),
        ("tm_pkg", "no module __main__"),
        ("tm_space.inner.nope", "no module named 'tm_space.inner.nope'"),
        ("tm_pkg/run.py", "'tm_pkg/run.py' is not the name of a module"),
        ("tm_pkg.", "'tm_pkg.' is not the name of a module"),
        ("", "'' is not the name of a module"),
    ],
)
def test_modules_that_cannot(project: Path, name: str, words: str) -> None:
    with pytest.raises(NothingToRun, match="-m") as error:
        check_module(name)
    assert words in str(error.value)


@pytest.mark.parametrize("script", ["tm_single.py", "app", "./tm_pkg/../tm_single.py"])
def test_scripts_that_can_be_run(project: Path, script: str) -> None:
    check_script(script)


@pytest.mark.parametrize(
    ("script", "words"),
    [("none.py", "no such file: none.py"), ("empty", "without a __main__.py"), ("", "no such")],
)
def test_scripts_that_cannot(project: Path, script: str, words: str) -> None:
    with pytest.raises(NothingToRun, match=words):
        check_script(script)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_script_without_read_permission(project: Path) -> None:
    (project / "tm_single.py").chmod(0)
    with pytest.raises(NothingToRun, match="can't read tm_single.py"):
        check_script("tm_single.py")


def test_programs(project: Path) -> None:
    check_program("sh")
    check_program(sys.executable)
    with pytest.raises(NothingToRun, match="no program tm_single.py that can be run"):
        check_program("tm_single.py")
    with pytest.raises(NothingToRun, match="no program ./tm_single.py that can be run"):
        check_program("./tm_single.py")  # not executable
