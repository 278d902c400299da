"""Small gloo groups beside the job's own."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, ProcessGroupGloo, Store

from trainmesh.hooks import executor
from trainmesh.hooks.groups import gloo_devices, small_gloo_group

pytestmark = pytest.mark.torch
SOON = timedelta(seconds=10)


def test_a_small_group_goes_where_gloo_was_told_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the job's own device; beside a group without one, as GLOO_SOCKET_IFNAME says."""
    store: Store = HashStore()
    job = dist.ProcessGroup(PrefixStore("job", store), 0, 1)
    assert gloo_devices(job) == []
    gloo = ProcessGroupGloo(PrefixStore("gloo", store), 0, 1, SOON)
    job._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    devices = gloo_devices(job)
    assert len(devices) == 1
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-nic")
    small_gloo_group(PrefixStore("a", store), 0, 1, SOON, devices)
    with pytest.raises(RuntimeError, match="no-such-nic"):
        small_gloo_group(PrefixStore("b", store), 0, 1, SOON, [])


@pytest.mark.parametrize(("number", "apart"), [(0, False), (7, True)])
def test_groups_of_a_restarted_job_meet_no_stale_addresses(
    monkeypatch: pytest.MonkeyPatch, number: int, *, apart: bool
) -> None:
    """torchrun's static rendezvous keeps the store when it restarts the workers, and torch counts
    groups from the beginning again."""
    store = HashStore()
    left: list[set[str]] = []
    for start in (1, 2):
        world = SimpleNamespace(number=number * start)
        monkeypatch.setattr(executor, "current", lambda world=world: world)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        before = set(store.list_keys())
        try:
            assert dist.group.WORLD is not None
            group = executor.GroupFactory(dist.group.WORLD).new_group([0])
            assert group is not None
            left.append(set(store.list_keys()) - (before if start == 1 else set()))
            other = dist.new_group([0])
            assert isinstance(other, dist.ProcessGroup)
        finally:
            dist.destroy_process_group()
    mine = [{key for key in keys if "trainmesh" in key} for keys in left]
    if apart:
        assert mine[0]
        assert mine[0] < mine[1], "the second start used what the first had left"
    else:
        assert mine == [set(), set()]
