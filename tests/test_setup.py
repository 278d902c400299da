"""What a newcomer's machine gets: locked versions, words for what it lacks, nothing assumed."""

import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import system_packages
from scripts.system_packages import Package
from tests import needs

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>.*?))? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def locked(name: str) -> dict[str, str]:
    """The versions that requirements/``name``.txt has for this Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        if entry := LOCKED.match(line):
            marker = Requirement(f"x ; {entry['marker']}").marker if entry["marker"] else None
            if marker is None or marker.evaluate():
                found[entry["name"]] = entry["version"]
        else:
            assert HASH.match(line), f"{name}.txt: {line!r} is no version with a hash"
    return found


def wanted() -> list[Requirement]:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *groups.values(),
    ]
    # "all" is this project's own extras, and a group may include another.
    texts = [text for each in lists for text in each if not isinstance(text, dict)]
    return [each for each in map(Requirement, texts) if each.name != project["name"]]


def test_the_lock_has_what_the_metadata_asks_for() -> None:
    versions = locked("dev") | locked("build") | locked("torch")
    for each in wanted():
        version = versions.get(canonicalize_name(each.name))
        assert version, f"{each.name} is not locked: make lock"
        assert each.specifier.contains(version, prereleases=True), (
            f"{each.name} {version} is locked, which pyproject.toml refuses: make lock"
        )


def test_torch_is_locked_once_and_as_a_cpu_build() -> None:
    version = locked("torch")["torch"]
    assert "torch" not in locked("dev")
    (constraint,) = PROJECT["tool"]["uv"]["constraint-dependencies"]
    assert f"{constraint}+cpu" == f"torch=={version}"
    (told,) = PROJECT["tool"]["uv"]["dependency-metadata"]
    assert told["version"] == version.removesuffix("+cpu")
    assert not [name for name in locked("dev") if name.startswith(("nvidia-cu", "cuda", "triton"))]


def test_metadata_keeps_ranges() -> None:
    pinned = [str(each) for each in wanted() if "==" in str(each.specifier)]
    assert pinned == ["etcd3==0.12.0"]  # its modules are built anew; any other release may differ


ABSENT = Package("libnothing1 libnothing-dev", "libnothing", "of nothing", lambda: False)


def test_setup_names_what_is_missing_and_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system_packages, "PACKAGES", {"libnothing": ABSENT})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    system_packages.main()
    assert capsys.readouterr().err == (
        "setup: this system lacks libnothing (tests of nothing); those tests skip. "
        "To run them, as root:\n    apt-get install -y libnothing1 libnothing-dev\n"
    )


def test_tests_skip_with_the_same_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(system_packages.PACKAGES, "libnothing", ABSENT)
    line = "^needs libnothing: as root, apt-get install -y libnothing1 libnothing-dev$"
    with pytest.raises(pytest.skip.Exception, match=line):
        needs.need("libnothing")


def test_nothing_is_said_where_all_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        here = Package("x", "x", "x", lambda: True)
        patch.setattr(system_packages, "PACKAGES", {"x": here})
        system_packages.main()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("hard", "outcome"), [(4096, "1 passed"), (1024, "1 skipped")])
def test_an_ordinary_users_limit_of_open_files_is_enough(hard: int, outcome: str) -> None:
    test = "tests/launcher/lab/test_arguments.py::test_input_is_seen_on_any_file_descriptor"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in done.stdout, done.stdout
