"""Small gloo groups beside the job's own."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo, Store

from trainmesh.hooks.groups import gloo_devices, small_gloo_group

pytestmark = pytest.mark.torch
SOON = timedelta(seconds=10)


def test_a_small_group_goes_where_gloo_was_told_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the job's own device; beside a group without one, as GLOO_SOCKET_IFNAME says."""
    store: Store = dist.HashStore()
    job = dist.ProcessGroup(dist.PrefixStore("job", store), 0, 1)
    assert gloo_devices(job) == []
    gloo = ProcessGroupGloo(dist.PrefixStore("gloo", store), 0, 1, SOON)
    job._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
    devices = gloo_devices(job)
    assert len(devices) == 1
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-nic")
    small_gloo_group(dist.PrefixStore("a", store), 0, 1, SOON, devices)
    with pytest.raises(RuntimeError, match="no-such-nic"):
        small_gloo_group(dist.PrefixStore("b", store), 0, 1, SOON, [])
