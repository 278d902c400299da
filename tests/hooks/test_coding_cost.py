"""Ranks time codecs for ``--compression auto``, one a node, and never otherwise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert
from msgspec.structs import replace

from tests.launchjob import place
from tests.torchjob import run_job
from trainmesh.hooks.codecs import measure_cost
from trainmesh.hooks.route.coding_cost import ENV_COMPRESSION, sample, times_codecs
from trainmesh.types import CodecCost, Hello

HELLO = Hello(
    rank=4, local_rank=0, world_size=8, node_rank=1, node="n", pid=1, clock="c", backend="gloo",
    device="cpu",
)  # fmt: skip


@pytest.mark.parametrize(
    ("compression", "hello", "number", "expected"),
    [
        ("auto", HELLO, 0, True),
        ("none", HELLO, 0, False),
        ("bf16", HELLO, 0, False),
        (None, HELLO, 0, False),
        ("auto", HELLO, 1, False),
        ("auto", replace(HELLO, rank=5, local_rank=1), 0, False),
        ("auto", replace(HELLO, rank=0, world_size=1), 0, False),
    ],
)
def test_who_times_codecs(
    monkeypatch: pytest.MonkeyPatch,
    compression: str | None,
    hello: Hello,
    number: int,
    expected: bool,
) -> None:
    monkeypatch.delenv(ENV_COMPRESSION, raising=False)
    if compression is not None:
        monkeypatch.setenv(ENV_COMPRESSION, compression)
    assert times_codecs(hello, number) is expected


@pytest.mark.torch
def test_one_rank_of_a_node_tells_what_codecs_cost() -> None:
    with place() as here:
        ranks = run_job(
            "coding_cost.py",
            world_size=2,
            out=here.path / "out",
            RUNS=str(here.path),
            TRAINMESH_COMPRESSION="auto",
        )
    assert [rank["notes"] for rank in ranks.values()] == [[], []]
    assert ranks[1]["costs"] == []
    costs = convert(ranks[0]["costs"], list[CodecCost])
    assert [cost.codec for cost in costs] == ["bf16", "int8", "powersgd"]
    bf16, int8, powersgd = costs
    assert bf16.ratio == 2
    assert 3.9 < int8.ratio < 4
    # Biases go as they are; of 256 x 512 and 512 x 1024 there are rank-4 factors.
    factors = 4 * (256 + 512 + 512 + 1024) + 512 + 1024
    assert powersgd.ratio == pytest.approx((256 * 512 + 512 * 1024 + 512 + 1024) / factors)
    assert [cost.num_collectives for cost in costs] == [1, 2, 2]
    for cost in costs:
        assert cost.encode_s_per_byte > 0
        assert cost.decode_s_per_byte > 0


def test_timing_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    measure_cost("powersgd:2", [(64, 64)], torch.float32, torch.device("cpu"), 2)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.lists(st.integers(1, 50), max_size=3).map(tuple)), st.integers(1, 5000))
def test_a_sample_is_as_large_as_it_may_be(shapes: list[tuple[int, ...]], most: int) -> None:
    def numel(of: list[tuple[int, ...]]) -> int:
        return sum(torch.Size(shape).numel() for shape in of)

    found = sample(shapes, most)
    whole = numel(shapes)
    assert numel(found) <= most
    if whole <= most:
        assert found == shapes
    else:
        last = shapes[len(found) - 1]
        row = torch.Size(last[1:]).numel()
        assert numel(found) > most - max(row, 1)
