"""A job's name belongs to one launch: two of one name never mix, and none is refused wrongly."""

import os
import signal
import subprocess
from argparse import Namespace
from collections.abc import Iterator

import pytest
from msgspec import structs

from tests.launchjob import JOBS, LAUNCH, Place, place, wait_for
from trainmesh.errors import FencedOut, JobTaken
from trainmesh.launcher.run.meeting import meeting_of
from trainmesh.rundir import process_start_ticks
from trainmesh.serving.cluster.verdicts import (
    QUARANTINE,
    SubjectKind,
    Verdict,
    judge,
    read_verdicts,
)
from trainmesh.store.base import claim_prefix, job_prefix
from trainmesh.store.claim import Claim, Meeting, is_dead, new_claim
from trainmesh.store.claiming import hold
from trainmesh.store.etcd import EtcdStore, connect
from trainmesh.store.rpc import prefix_end, rpc
from trainmesh.wire import decode

PATIENCE_S = 20
QUARANTINED = Verdict(
    kind=SubjectKind.NODE, subject="n7", reason="fans", owner="admin:ada", since_unix_s=1.0
)


@pytest.fixture
def stores(etcd_url: str) -> Iterator[tuple[EtcdStore, EtcdStore]]:
    two = connect(etcd_url, timeout_s=PATIENCE_S), connect(etcd_url, timeout_s=PATIENCE_S)
    yield two
    for store in two:
        store.close()


def of_dead_process(job: str) -> Claim:
    with subprocess.Popen(["sleep", "60"]) as process:
        ticks = process_start_ticks(process.pid) or 0
        process.kill()
    return structs.replace(new_claim(job, None), pid=process.pid, start_ticks=ticks)


@pytest.mark.etcd
class TestHold:
    def test_a_second_launch_is_refused_and_told_who(
        self, stores: tuple[EtcdStore, EtcdStore]
    ) -> None:
        first, second = stores
        mine = structs.replace(new_claim("taken", None), user="ada", host="node7", pid=os.getpid())
        hold(first, mine)
        hold(second, mine)  # the coordinator beside the agent
        with pytest.raises(JobTaken) as caught:
            hold(second, new_claim("taken", None))
        assert f"it was started by ada on node7 (launcher {os.getpid()}) since 20" in str(
            caught.value
        )
        assert str(caught.value).endswith("with --job NAME, or wait until it has ended")

    def test_a_dead_launch_is_followed_at_once_and_its_keys_are_gone(
        self, stores: tuple[EtcdStore, EtcdStore]
    ) -> None:
        first, second = stores
        prefix = job_prefix("dead")
        hold(first, of_dead_process("dead"))
        first.put(f"{prefix}hint", b"old")
        second.put(f"{job_prefix('dead-too')}hint", b"another's")
        hold(second, new_claim("dead", None))
        assert second.list(prefix)[0] == []
        assert second.get(f"{job_prefix('dead-too')}hint") is not None
        second.put(f"{prefix}hint", b"new")
        lease = first.lease(10)
        for write in (
            lambda: first.put(f"{prefix}hint", b"old"),
            lambda: first.cas(f"{prefix}hint", b"old", expected_revision=0),
            lambda: first.delete(prefix),
            lambda: first.elect(f"{prefix}leader/", b"", lease, timeout_s=0),
        ):
            with pytest.raises(FencedOut, match="claim on the job's name"):
                write()
        entry = second.get(f"{prefix}hint")
        assert entry is not None
        assert entry.value == b"new", "the first to end takes nothing of the other's"

    def test_nodes_of_one_job_share_a_claim_until_the_last_has_gone(
        self, etcd_url: str, stores: tuple[EtcdStore, EtcdStore]
    ) -> None:
        first, second = stores
        meeting = Meeting(run_id="none", endpoint="a:29500", port=29500, addresses=("10.0.0.1",))
        other_name = structs.replace(meeting, endpoint="10.0.0.1:29500")
        hold(first, new_claim("nodes", meeting))
        lease = hold(second, new_claim("nodes", other_name))
        first.put(f"{job_prefix('nodes')}hint", b"1")
        first.close()  # its lease is not revoked: the second one keeps it
        second.put(f"{job_prefix('nodes')}hint", b"2")
        assert not lease.lost
        third = connect(etcd_url, timeout_s=PATIENCE_S)
        elsewhere = structs.replace(meeting, endpoint="b:29500", addresses=("10.0.0.2",))
        with pytest.raises(JobTaken):
            hold(third, new_claim("nodes", elsewhere))
        third.close()

    def test_garbage_in_the_place_of_a_claim_is_replaced(
        self, stores: tuple[EtcdStore, EtcdStore]
    ) -> None:
        first, second = stores
        first.put(f"{claim_prefix('garbage')}holder", b"\xff{")
        hold(second, new_claim("garbage", None))
        second.put(f"{job_prefix('garbage')}hint", b"1")

    def test_leadership_and_cas_work_under_a_claim(
        self, stores: tuple[EtcdStore, EtcdStore]
    ) -> None:
        store, _ = stores
        hold(store, new_claim("leads", None))
        prefix = job_prefix("leads")
        leader = store.elect(f"{prefix}leader/", b"", store.lease(10), timeout_s=0)
        assert leader is not None
        revision = store.cas(f"{prefix}hint", b"1", expected_revision=0, fence=leader)
        assert revision is not None
        assert store.cas(f"{prefix}hint", b"2", expected_revision=0, fence=leader) is None
        gone = structs.replace(leader, create_revision=1)
        with pytest.raises(FencedOut, match="another coordinator"):
            store.cas(f"{prefix}hint", b"2", expected_revision=revision, fence=gone)
        assert store.delete(prefix) == 2


def test_only_what_can_be_seen_counts_as_dead() -> None:
    claim = of_dead_process("job")
    assert is_dead(claim)
    assert not is_dead(new_claim("job", None))
    assert not is_dead(structs.replace(claim, boot_id="another"))
    assert not is_dead(structs.replace(claim, pid_namespace="another"))
    meeting = Meeting(run_id="none", endpoint="a:1", port=1, addresses=())
    assert not is_dead(structs.replace(claim, meeting=meeting)), "its other nodes may live"


def flags(**changes: object) -> Namespace:
    plain = {
        "rdzv_backend": "static",
        "rdzv_endpoint": "",
        "rdzv_id": "none",
        "master_addr": "127.0.0.1",
        "master_port": None,
    }
    return Namespace(**{**plain, **changes})


def test_meetings() -> None:
    assert meeting_of(flags(), 1) is None
    local = meeting_of(flags(), 2)
    named = meeting_of(flags(rdzv_endpoint="localhost:29500"), 2)
    c10d = meeting_of(flags(rdzv_backend="c10d", rdzv_endpoint="localhost"), 2)
    far = meeting_of(flags(master_addr="192.0.2.7"), 2)
    again = meeting_of(flags(master_addr="192.0.2.7"), 2)
    other_id = meeting_of(flags(rdzv_id="8"), 2)
    assert local is not None
    assert named is not None
    assert far is not None
    assert again is not None
    assert other_id is not None
    assert c10d is not None
    assert c10d.port == 29400
    assert local.is_same(named)
    assert far.is_same(again)
    assert not local.is_same(far)
    assert not local.is_same(other_id)
    assert not local.is_same(c10d)
    nowhere = meeting_of(flags(master_addr="no-such-host.invalid"), 2)
    assert nowhere is not None
    assert nowhere.addresses == ()


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as found:
        yield found


@pytest.mark.torch
@pytest.mark.etcd
def test_a_second_launch_is_refused_before_training_and_a_killed_one_is_followed(
    here: Place, etcd_url: str
) -> None:
    command = [*LAUNCH, "--job", "same", "--etcd", etcd_url, "--no-python"]
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    first = here.start(*command, "sleep", "100")
    wait_for(lambda: store.list(f"{job_prefix('same')}agents/")[0])
    second = here.run(*command, "sh", "-c", "echo trained")
    assert second.returncode == 1
    assert second.stdout == ""
    waiting, error = second.stderr.splitlines()
    assert waiting.endswith("; waiting for 13 s, in case it has died")
    assert error.startswith("trainmesh: error: a job named 'same' is running already: it was st")
    assert store.list(f"{job_prefix('same')}agents/")[0], "nothing of the first one was removed"
    first.kill()
    first.wait()
    for pid in here.processes("sleep"):  # torchrun's workers outlive it, and hold our pipes
        os.kill(pid, signal.SIGKILL)
    first.communicate()
    third = here.run(*command, "sh", "-c", "echo trained")
    assert (third.returncode, third.stdout, third.stderr) == (0, "trained\n", "")
    held = store.get(f"{claim_prefix('same')}holder")
    assert held is None or decode(held.value, Claim, what="claim").pid != first.pid
    store.close()


@pytest.mark.torch
@pytest.mark.etcd
def test_nothing_of_a_killed_job_stays_and_what_people_wrote_does(
    here: Place, etcd_url: str
) -> None:
    """Its host has lost power: no process of it can clear up, and its name never comes again."""
    store = connect(etcd_url, timeout_s=PATIENCE_S)
    prefix, claim = job_prefix("killed"), claim_prefix("killed")

    def keys() -> dict[str, int]:
        """Of the job, and the lease of each."""
        found = {}
        for start in (prefix, claim):
            reply = store._connection.kv.Range(
                rpc.RangeRequest(key=start.encode(), range_end=prefix_end(start.encode()))
            )
            found.update({kv.key.decode().removeprefix(prefix): kv.lease for kv in reply.kvs})
        return found

    ranks = ["--nproc-per-node", "3", "--plan", "ring", str(JOBS / "endless.py")]
    launcher = here.start(*LAUNCH, "--job", "killed", "--etcd", etcd_url, *ranks)
    wanted = {"hint", "graph", "status", f"{claim}holder"}
    wait_for(lambda: wanted <= keys().keys() and any("reports/" in key for key in keys()))
    judge(store, QUARANTINED)
    without_lease = [key for key, lease in keys().items() if not lease]
    assert without_lease == []
    for pid in here.processes():
        os.kill(pid, signal.SIGKILL)
    launcher.communicate()
    wait_for(lambda: not keys())
    verdicts, _ = read_verdicts({e.key: e.value for e in store.list(QUARANTINE)[0]})
    assert QUARANTINED in verdicts
    store.close()
