"""Where a process may have few files open, or can write nowhere: plain torchrun beside ours."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launchjob import JOBS, LAUNCH, ROOT, TORCHRUN, Place, place

pytestmark = [pytest.mark.torch, pytest.mark.etcd]

ENDS = ["tests/jobs/ends.py", "well"]
PACED = ["--nproc-per-node", "2", str(JOBS / "paced.py")]
LAUNCHERS = {"plain": TORCHRUN, "ours": [*LAUNCH, "--progress", "off"]}
READ_ONLY = """
mount --make-rprivate /
mount -t tmpfs tmpfs "$HERE"
if [ "$WHERE" = everywhere ]; then
    while read -r _ place _; do mount -o remount,ro,bind "$place" 2>/dev/null; done < /proc/mounts
    if touch /tmp/written 2>/dev/null; then rm /tmp/written; exit 77; fi
else
    mount -o remount,ro "$HERE"
fi
cd "$ROOT"
export HOME=$HERE TMPDIR=$HERE XDG_RUNTIME_DIR=$HERE XDG_CACHE_HOME=$HERE
exec "$@"
"""
NOT_READ_ONLY = 77


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


def losses(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("losses", "state"))]


@pytest.mark.parametrize("limit", [40, 160])
def test_few_files_may_be_open(here: Place, limit: int) -> None:
    """40: two ranks of DDP and torchrun have just enough; 160: etcd wants 150 for itself."""
    few = f'ulimit -n {limit}; exec "$@"'
    plain = here.run("bash", "-c", few, "-", *LAUNCHERS["plain"], *PACED, SECONDS="0")
    torchruns = here.files()
    ours = here.run("bash", "-c", few, "-", *LAUNCHERS["ours"], *PACED, SECONDS="0")
    assert (ours.returncode, plain.returncode) == (0, 0), ours.stderr
    assert losses(ours.stdout) == losses(plain.stdout) != []
    (line,) = [line for line in ours.stderr.splitlines() if line.startswith("trainmesh: ")]
    assert line == (
        f"trainmesh: warning: only {limit} files may be open here (ulimit -n), and the control "
        "plane wants 256; training goes on as under torchrun, without plans and a report"
    )
    assert here.processes() == {}
    assert here.files() == torchruns


@pytest.mark.parametrize(("where", "code"), [("home and TMPDIR", 0), ("everywhere", 1)])
def test_nothing_can_be_written(tmp_path: Path, where: str, code: int) -> None:
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs root, to mount file systems of its own")
    ran = {}
    for name, words in LAUNCHERS.items():
        ran[name] = subprocess.run(
            ["unshare", "-m", "sh", "-c", READ_ONLY, "-", *words, *ENDS],
            env={**os.environ, "HERE": str(tmp_path), "ROOT": str(ROOT), "WHERE": where},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    plain, ours = ran["plain"], ran["ours"]
    if plain.returncode == NOT_READ_ONLY:
        pytest.skip("no file system can be made read-only here")
    assert (ours.returncode, plain.returncode) == (code, code), (ours.stderr, plain.stderr)
    assert ours.stdout == plain.stdout
    assert "Traceback" not in ours.stderr
    if code:
        warning, error = ours.stderr.splitlines()
        assert warning.startswith("trainmesh: warning: can't make a run directory")
        assert error.startswith("trainmesh: error: torchrun needs a temporary directory")
    assert list(tmp_path.iterdir()) == []
