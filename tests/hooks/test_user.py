"""A script's own hook is timed, whatever kind of future it returns."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from trainmesh.hooks.ddp.user import UserHook
from trainmesh.hooks.timing import Mark

pytestmark = pytest.mark.torch

KINDS: dict[str, Callable[[Future[torch.Tensor]], Future[torch.Tensor]]] = {
    "as it is": lambda future: future,
    "then, as most hooks do": lambda future: future.then(lambda done: done.value()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_future_ends_the_mark(kind: str) -> None:
    future: Future[torch.Tensor] = Future()
    hook = UserHook(None, lambda state, bucket: KINDS[kind](future))
    mark = Mark(0, 4)
    returned = hook.reduce(cast(GradBucket, None), mark)
    assert mark.timing() is None
    future.set_result(torch.ones(1))
    returned.wait()
    assert mark.timing() is not None
