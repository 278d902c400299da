"""A reducer's buckets are told apart by counting; whose gradients they hold is asked for."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch._C._distributed_c10d import Reducer
from torch.futures import Future

from trainmesh.hooks.ddp.buckets import BucketOrder
from trainmesh.hooks.route.fusion import Bucket, Fusion
from trainmesh.hooks.timing import Mark

SIZES = [(3,), (2, 2), (5,)]


@dataclass
class FakeBucket:
    held: list[torch.Tensor]

    def buffer(self) -> torch.Tensor:
        return torch.cat([one.flatten() for one in self.held])

    def parameters(self) -> list[torch.Tensor]:
        return self.held


@dataclass
class FakeReducer:
    """Its buckets hold these parameters; counts how often it was asked."""

    buckets: list[list[torch.Tensor]]
    asked: int = field(default=0)

    def _get_zeros_like_grad_buckets(self) -> list[FakeBucket]:
        self.asked += 1
        return [FakeBucket(held) for held in self.buckets]


def test_places_start_anew_with_each_step_and_after_one_that_was_left() -> None:
    order = BucketOrder(12)
    buffers = [torch.zeros(size) for size in SIZES]
    for _ in range(2):
        assert [order.next(one) for one in buffers] == [(0, False), (1, False), (2, True)]
    order.next(buffers[0])
    order.restart()
    assert [order.next(one) for one in buffers] == [(0, False), (1, False), (2, True)]


def test_a_sparse_gradient_counts_as_its_parameter() -> None:
    order = BucketOrder(30 * 4 + 3)
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 7]]), torch.ones(2, 4), (30, 4), check_invariants=True
    )
    assert order.next(sparse) == (0, False)
    assert order.next(torch.zeros(3)) == (1, True)


def test_parameters_are_asked_for_once_and_after_buckets_have_changed() -> None:
    parameters = [torch.zeros(size) for size in SIZES]
    order, fake = BucketOrder(12), FakeReducer([parameters])
    reducer = cast(Reducer, fake)
    assert order.parameters(0, torch.zeros(12)) == ()
    order.next(torch.zeros(12))
    order.read_parameters(reducer, rebuilt=False)
    assert list(map(id, order.parameters(0, torch.zeros(12)))) == list(map(id, parameters))
    order.read_parameters(reducer, rebuilt=False)
    assert fake.asked == 1
    fake.buckets = [parameters[2:], parameters[:2]]
    order.read_parameters(reducer, rebuilt=True)  # told
    assert order.parameters(0, torch.zeros(12)) == ()
    assert [one.numel() for one in order.parameters(1, torch.zeros(7))] == [3, 4]
    fake.buckets = [parameters[:1], parameters[1:]]
    order.next(torch.zeros(3))
    order.next(torch.zeros(9))
    order.read_parameters(reducer, rebuilt=False)  # seen
    assert [one.numel() for one in order.parameters(1, torch.zeros(9))] == [4, 5]
    assert fake.asked == 3
    order.read_parameters(reducer, rebuilt=False)
    assert fake.asked == 3


def test_what_a_step_that_was_given_up_has_held_back_is_forgotten() -> None:
    reduced: list[torch.Tensor] = []

    def reduce(bucket: Bucket) -> Future[torch.Tensor]:
        reduced.append(bucket.buffer.clone())
        done: Future[torch.Tensor] = Future()
        done.set_result(bucket.buffer)
        return done

    fusion = Fusion(1 << 20, reduce)
    fusion.take(Bucket(torch.ones(3), (), Mark(0, 12)), is_last=False)
    fusion.restart()
    fusion.take(Bucket(torch.zeros(3), (), Mark(0, 12)), is_last=False)
    assert fusion.take(Bucket(torch.zeros(2), (), Mark(1, 8)), is_last=True).done()
    assert [one.tolist() for one in reduced] == [[0.0] * 5]
