"""Launch after launch, the native plan computes what plain torchrun computes."""

import pytest

from tests.launchjob import JOBS, LAUNCH, TORCHRUN, Place

pytestmark = [pytest.mark.torch, pytest.mark.etcd]


def test_no_launch_changes_the_buckets_of_the_next(here: Place) -> None:
    """With three ranks the order of a sum depends on where in its bucket a gradient lies.

    A version of November 2026 cut the next launch's buckets to the size in this file.
    """
    learned = here.path / "trainmesh" / "jobs" / "again.json"
    learned.parent.mkdir(parents=True)
    learned.write_text('{"bucket_cap_mb": 0.05}')
    job = ["--nproc-per-node", "3", str(JOBS / "bits.py")]
    launches = [[*LAUNCH, "--job", "again", "--plan", "native"], [*LAUNCH, "--job", "again"]]
    plain, *ours = (here.run(*command, *job).stdout for command in (TORCHRUN, *launches))
    assert len(plain) == 65
    assert ours == [plain, plain]
    assert learned.read_text() == '{"bucket_cap_mb": 0.05}'
