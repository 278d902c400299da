"""What a run has learned reaches the next launch of the same job, and nothing else does."""

from argparse import Namespace
from pathlib import Path

import pytest

from trainmesh.launcher.memory import MIB, memory_file, recall, remember
from trainmesh.types import Hint, JobStatus, Plan
from trainmesh.wire import encode

PLAN = Plan(algorithm="native", world_size=2, order=(0, 1))


def status(path: Path, *, fusion_bytes: int, epoch: int = 3, in_force: int = 3) -> Path:
    hint = Hint(
        job="j", epoch=epoch, effective_step=1, plan=PLAN, reason="", fusion_bytes=fusion_bytes
    )
    job = JobStatus(job="j", updated_unix_s=0.0, epoch=in_force, hint=hint)
    path.write_bytes(encode(job))
    return path


def test_a_job_is_remembered_by_its_name_or_by_its_script(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}

    def where(job: str | None, script: str, *script_args: str, nproc: str = "1") -> str:
        args = Namespace(
            job=job,
            training_script=script,
            training_script_args=list(script_args),
            nnodes="1:1",
            nproc_per_node=nproc,
        )
        return str(memory_file(args, environ).relative_to(tmp_path))

    assert where("mine", "train.py") == where("mine", "other.py") == "trainmesh/jobs/mine.json"
    assert where(None, "/a/train.py") == where(None, "/a/../a/train.py")
    assert where(None, "/a/train.py") != where(None, "/b/train.py")
    assert "/train-" in where(None, "/a/train.py")
    # Buckets learned with next to no compute once made a run with compute 12 % slower.
    batches = [where(None, "/a/train.py", "--batch", size) for size in ("1", "512")]
    assert len({*batches, where(None, "/a/train.py"), where(None, "/a/train.py", nproc="2")}) == 4
    assert where("mine", "train.py", "--batch", "1") == where("mine", "train.py")
    home = memory_file(Namespace(job="mine", training_script=""), {})
    assert home == Path.home() / ".cache/trainmesh/jobs/mine.json"


def test_the_fusion_size_in_force_becomes_the_bucket_size(tmp_path: Path) -> None:
    memory = tmp_path / "deep" / "jobs" / "j.json"
    assert recall(memory) == 0
    remember(memory, status(tmp_path / "status", fusion_bytes=8 * MIB))
    assert recall(memory) == 8
    remember(memory, status(tmp_path / "status", fusion_bytes=0))
    assert recall(memory) == 8
    remember(memory, status(tmp_path / "status", fusion_bytes=4 * MIB, epoch=4))
    assert recall(memory) == 8  # the ranks never took it up
    remember(memory, status(tmp_path / "status", fusion_bytes=26 * MIB))
    assert recall(memory) == 8  # next to nothing would be left to overlap with
    assert [path.name for path in memory.parent.iterdir()] == ["j.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"bucket_cap_mb": 0}', b'{"bucket_cap_mb": 1e99}', b"\xff" * 99]
)
def test_a_damaged_memory_is_none(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = tmp_path / "j.json"
    memory.write_bytes(content)
    assert recall(memory) == 0
    assert str(memory) in capsys.readouterr().err


def test_a_run_without_status_teaches_nothing(tmp_path: Path) -> None:
    remember(tmp_path / "j.json", tmp_path / "missing")
    (tmp_path / "status").write_bytes(b"no")
    remember(tmp_path / "j.json", tmp_path / "status")
    assert not (tmp_path / "j.json").exists()


def test_a_place_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = status(tmp_path / "status", fusion_bytes=8 * MIB)
    remember(tmp_path / "file" / "j.json", found)
    assert "is not kept" in capsys.readouterr().err
