"""The way in for programs that torchrun starts with --no-python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "launcher" / "site"
HOOKED = "import sys; print([type(f).__module__ for f in sys.meta_path][:1])"


def run(*arguments: str, path: list[Path], **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RANK"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "PYTHONPATH": ":".join(map(str, path)), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_worker_gets_the_hook_and_its_path_is_clean() -> None:
    done = run("-c", HOOKED + "; print(sys.path)", path=[SITE, ROOT], RANK="1")
    assert done.stdout.startswith("['trainmesh.hooks.patch']")
    assert str(SITE) not in done.stdout


def test_a_process_that_is_no_worker_is_left_alone() -> None:
    assert "trainmesh" not in run("-c", HOOKED, path=[SITE, ROOT]).stdout


def test_the_shadowed_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.shadowed = __file__")
    code = "import sys, sitecustomize; print(sys.shadowed); print(sitecustomize.__file__)"
    done = run("-c", code, path=[SITE, tmp_path, ROOT], RANK="0")
    assert done.stdout.splitlines() == [str(tmp_path / "sitecustomize.py")] * 2


def test_nothing_is_done_in_a_spawned_child(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def work(): print('trainmesh' in sys.modules)\n"
        "if __name__ == '__main__':\n"
        "    print('trainmesh' in sys.modules, flush=True)\n"
        "    child = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    child.start(); child.join()\n"
    )
    done = run(str(script), path=[SITE, ROOT], RANK="0")
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")


@pytest.mark.parametrize(("rank", "num_lines"), [("0", 1), ("1", 0)])
def test_a_python_without_trainmesh_says_so_once_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, num_lines: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("-S", "-c", "import sitecustomize; print('ran')", path=[SITE], RANK=rank)
    assert done.stdout == "ran\n"
    assert len(done.stderr.splitlines()) == num_lines
