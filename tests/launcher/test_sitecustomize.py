"""The way into the Python processes of a launch: ``site/sitecustomize`` and ``hooks/patch``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "launcher" / "site"
HOOKED = "import sys; print([type(f).__module__ for f in sys.meta_path][:1])"
PATCHED = "['_trainmesh_patch']"


def run(
    *arguments: str, path: list[Path], launched: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    own = ("RANK", "TRAINMESH")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    if launched:
        environment["TRAINMESH_LAUNCHER"] = "1"
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "PYTHONPATH": ":".join(map(str, path)), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_worker_gets_the_hook_and_its_path_is_clean() -> None:
    code = f"{HOOKED}; print(sys.path, [m for m in sys.modules if m.startswith('trainmesh')])"
    done = run("-c", code, path=[SITE, ROOT], RANK="1")
    assert done.stdout.startswith(PATCHED)
    assert str(SITE) not in done.stdout
    assert done.stdout.endswith(" []\n")  # the script's own trainmesh.py is its own


def test_a_process_of_no_launch_is_left_alone() -> None:
    assert PATCHED not in run("-c", HOOKED, path=[SITE, ROOT], launched=False).stdout


def test_the_shadowed_sitecustomize_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.shadowed = __file__")
    code = "import sys, sitecustomize; print(sys.shadowed); print(sitecustomize.__file__)"
    done = run("-c", code, path=[SITE, tmp_path, ROOT], RANK="0")
    assert done.stdout.splitlines() == [str(tmp_path / "sitecustomize.py")] * 2


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_of_multiprocessing_are_reached(tmp_path: Path, method: str) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def work(): print([type(f).__module__ for f in sys.meta_path][:1])\n"
        "if __name__ == '__main__':\n"
        f"    child = multiprocessing.get_context({method!r}).Process(target=work)\n"
        "    child.start(); child.join()\n"
    )
    done = run(str(script), path=[SITE, ROOT], RANK="0")
    assert (done.stdout, done.stderr) == (f"{PATCHED}\n", "")


@pytest.mark.parametrize(("worker", "rank"), [(True, "0"), (True, "1"), (False, "0")])
def test_a_python_that_cannot_load_the_hook_runs_and_a_worker_says_so(
    tmp_path: Path, worker: bool, rank: str
) -> None:
    site = tmp_path / "launcher" / "site"  # hooks/patch.py is not there
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text((SITE / "sitecustomize.py").read_text())
    parent = {"TRAINMESH_LAUNCHER": str(os.getpid())} if worker else {}
    done = run("-c", "print('ran')", path=[site], launched=True, RANK=rank, **parent)
    assert done.stdout == "ran\n"
    assert ("trainmesh: not active in" in done.stderr) == (worker and rank == "0")
    assert len(done.stderr.splitlines()) == (worker and rank == "0")


FOLDER = """
import sys
{first}
from torch.nn.parallel import DistributedDataParallel
import torch.distributed as dist, torch
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = DistributedDataParallel(torch.nn.Linear(2, 2))
dispatcher_of = type(model)._pre_forward.__globals__["dispatcher_of"]
print(type(dispatcher_of(model)).__module__)
import trainmesh.data
print(trainmesh.data.OWN)
"""


@pytest.mark.torch
@pytest.mark.parametrize("first", ["", "import trainmesh", "import trainmesh.data"])
def test_a_folder_without_init_is_the_scripts_own(tmp_path: Path, first: str) -> None:
    """Where nothing is installed as ``trainmesh``, it is a package of that name."""
    (tmp_path / "trainmesh").mkdir()
    (tmp_path / "trainmesh" / "data.py").write_text("OWN = True")
    (tmp_path / "s.py").write_text(FOLDER.format(first=first))
    done = run(str(tmp_path / "s.py"), path=[SITE], RANK="0", TRAINMESH_RUN_DIR=str(tmp_path))
    assert done.stdout.splitlines() == ["trainmesh.hooks.ddp.dispatcher", "True"], done.stderr
    assert done.stderr == ""


HIDES = """
import sys
{first}
from torch.nn.parallel import DistributedDataParallel
import torch.distributed as dist, torch
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = DistributedDataParallel(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
dispatcher_of = type(model)._pre_forward.__globals__["dispatcher_of"]
print(type(dispatcher_of(model)).__module__)
import trainmesh, msgspec, statistics
print(trainmesh.OWN, msgspec.OWN, statistics.OWN)
"""


@pytest.mark.torch
@pytest.mark.parametrize("first", ["", "import trainmesh, msgspec, statistics"])
def test_modules_beside_the_script_neither_hide_ours_nor_are_hidden(
    tmp_path: Path, first: str
) -> None:
    """``statistics`` is one of the standard library's that we import and torch does not."""
    for name in ("trainmesh", "msgspec", "statistics"):
        (tmp_path / f"{name}.py").write_text("OWN = __name__")
    (tmp_path / "s.py").write_text(HIDES.format(first=first))
    done = run(str(tmp_path / "s.py"), path=[SITE], RANK="0", TRAINMESH_RUN_DIR=str(tmp_path))
    assert done.stdout.splitlines() == [
        "trainmesh.hooks.ddp.dispatcher",
        "trainmesh msgspec statistics",
    ], done.stderr
    assert done.stderr == ""
