"""Where run directories are made and looked for: as the environment says, also on a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import need_root
from trainmesh import places
from trainmesh.errors import ConfigError
from trainmesh.launcher.cli import main
from trainmesh.places import runs_root
from trainmesh.rundir import RunDir, RunInfo

VARIABLES = ("XDG_RUNTIME_DIR", "TMPDIR", "TEMP", "TMP")
ROOT = Path(__file__).parent.parent

FILLED = """
mount --make-rprivate / && mount -t tmpfs -o size=256k tmpfs "$TMPDIR" || exit 77
"$PYTHON" -c '
import os, sys
import subprocess
from pathlib import Path
from trainmesh.rundir import RunDir, RunInfo
info = RunInfo(job="mine", pid=os.getpid(), etcd="", created_unix_s=1.0)
run = RunDir.create(info)
filler = Path(os.environ["TMPDIR"], "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
status = subprocess.run([sys.executable, "-m", "trainmesh", "status"], stdout=subprocess.PIPE)
said = status.stdout.decode()
print("job mine" in said, "no space is left" in said, status.returncode)
later = RunDir.create(info)
print(later.path.parent.parent)
later.remove()
'
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment that names nothing, and a default of the test's own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setattr(places, "DEFAULTS", (str(folder),))
    return folder


def info(job: str) -> RunInfo:
    return RunInfo(job=job, pid=os.getpid(), etcd="", created_unix_s=1.0)


def jobs() -> list[str]:
    return [found.job for _, found in RunDir.live()]


@pytest.mark.root
def test_a_job_is_found_in_a_tmpdir_that_has_become_full(tmp_path: Path, elsewhere: Path) -> None:
    """And one that begins when it is full already is made elsewhere, which is said."""
    need_root()
    disk = tmp_path / "disk"
    disk.mkdir()
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    named = {"TMPDIR": str(disk), "TMP": str(elsewhere), "PYTHON": sys.executable}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FILLED],
        env={**environment, **named, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.stdout.splitlines() == ["True True 0", str(elsewhere)], done.stderr
    assert done.stderr == (
        f"trainmesh: warning: can't make a run directory in {disk}/trainmesh-{os.getuid()}: No "
        f"space left on device; {elsewhere}/trainmesh-{os.getuid()} is used instead\n"
    )


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_folder_that_is_not_there_is_not_made_and_another_one_is_used(
    tmp_path: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
) -> None:
    """Its jobs are found by those who have the same environment, and by nobody else."""
    theirs = RunDir.create(info("theirs"))
    gone = tmp_path / "gone"
    monkeypatch.setenv(variable, str(gone))
    assert jobs() == []
    mine = RunDir.create(info("mine"))
    assert mine.path.parent.parent == elsewhere
    said = capsys.readouterr().err
    assert said == (
        f"trainmesh: warning: can't make a run directory in {runs_root()}: No such file or "
        f"directory; {elsewhere}/trainmesh-{os.getuid()} is used instead\n"
    )
    assert jobs() == ["mine"]
    assert not gone.exists()
    monkeypatch.delenv(variable)
    assert "theirs" in jobs()
    for run in (mine, theirs):
        run.remove()


def test_where_nothing_is_found_an_unreadable_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert main(["status"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    assert main(["status"]) == 0
    out, err = capsys.readouterr()
    assert out == "no job is running\n"
    assert err == (
        f"trainmesh: warning: jobs can't be looked for in TMPDIR={tmp_path / 'gone'}: no such "
        "directory\n"
    )


def test_no_place_at_all_is_one_line_about_the_one_that_was_named(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / f"trainmesh-{os.getuid()}").write_text("in the way")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="gone/trainmesh-.* set XDG_RUNTIME_DIR to a writable"):
        RunDir.create(info("mine"))
