"""Launches where modules and files have names that could be in the way."""

import json
import os
import shutil
import sys

import pytest

from tests.launchjob import JOBS, ROOT, Place

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

LAUNCH = [sys.executable, "-P", "-m", "trainmesh", "launch", "--progress", "off"]
NAMES = ["json", "numpy", "networkx"]
RAISE = ["msgspec", "etcd3", "yaml", "rich", "grpc", "google", "google.protobuf", "tenacity"]
"""Of these the user's raise when they are imported; the last ones are packages."""


@pytest.mark.parametrize("where", ["beside", "PYTHONPATH"])
def test_modules_of_the_users_hide_none_of_ours(here: Place, where: str) -> None:
    """Plain torchrun runs such a script, as long as torch itself is not hit. It gets its own
    modules, or what they raise, and our processes live."""
    names = [*NAMES, "trainmesh", "types"] if where == "beside" else NAMES
    for name in names:
        (here.path / f"{name}.py").write_text("OWN = True\n")
    for name in ("google", "grpc"):
        (here.path / name).mkdir()
    for name in RAISE[:4] + ["google/__init__", "grpc/__init__", "tenacity"]:
        (here.path / f"{name}.py").write_text("raise RuntimeError('OWN')\n")
    shutil.copy(JOBS / "waits_for_status.py", here.path / "s.py")
    path = {"PYTHONPATH": str(here.path)} if where == "PYTHONPATH" else {"PYTHONPATH": ""}
    done = here.run(*LAUNCH, "s.py", *NAMES, *RAISE, timeout_s=100, **path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", *NAMES, *RAISE]


COMMAND = [sys.executable, "-c", "from trainmesh_command import main; main()"]
"""What pip installs as ``trainmesh``."""
MODULE = [sys.executable, "-m", "trainmesh"]


@pytest.mark.parametrize(
    ("program", "name", "where", "rest"),
    [
        (COMMAND, "trainmesh.py", "PYTHONPATH", str(ROOT)),
        (MODULE, "trainmesh/data.py", "PYTHONPATH", ""),
        (MODULE, "trainmesh/data.py", "beside", ""),
    ],
)
def test_a_trainmesh_of_the_users_is_not_taken_for_ours(
    here: Place, program: list[str], name: str, where: str, rest: str
) -> None:
    """A folder may be a clone's. The script gets its own, as under torchrun."""
    theirs = here.path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("OWN = True\n")
    shutil.copy(JOBS / "waits_for_status.py", here.path / "s.py")
    module = name.removesuffix(".py").replace("/", ".")
    flags = ["launch", "--progress", "off", "s.py", module]
    path = f"{here.path}{os.pathsep}{rest}" if where == "PYTHONPATH" else ""
    done = here.run(*program, *flags, PYTHONPATH=path, timeout_s=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", module]


def test_names_that_are_no_utf8(here: Place) -> None:
    script = here.path / os.fsdecode(b"s\xff.py")
    script.write_text("import os, sys; print([os.fsencode(word) for word in sys.argv[1:]])")
    words = [os.fsdecode(b"\xfe"), "a"]
    folder = os.fsdecode(b"r\xff")
    logs = here.path / os.fsdecode(b"t\xff")
    logs.mkdir()
    done = here.run(*LAUNCH, "--report", folder, script.name, *words, TMPDIR=str(logs))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[b'\\xfe', b'a']\n"
    assert json.loads((here.path / folder / "report.json").read_text())["schema"]
    assert list(logs.glob("torchelastic_*")) == []
    dry = here.run(*LAUNCH, "--dry-run", script.name, *words)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "s\\udcff.py" in dry.stdout
