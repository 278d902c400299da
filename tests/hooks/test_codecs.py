"""Codecs: alike on all ranks, nothing lost that is not said to be, nothing left of a NaN."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.futures import Future

from tests.hooks.ranks import ThreadFabric, run_ranks
from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs import (
    CODECS,
    ErrorFeedback,
    Gradient,
    GradientLayout,
    GroupExchange,
    Layouts,
    codec,
    measure_cost,
)
from trainmesh.plan.codec_cost import worth

EVERY = (
    "none",
    "bf16",
    "fp16",
    "bf16:feedback",
    "fp16:feedback",
    "int8",
    "powersgd:1",
    "powersgd:3",
    "topk:0.25",
)
LOSSY = {"bf16": 2**-8, "fp16": 2**-11, "bf16:feedback": 2**-8, "fp16:feedback": 2**-11}
"""Those that round the sum itself, which no rank can feed back; by how much of it."""
ROUNDING = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8,
}


class SharedMemory:
    """Ranks that are threads, which add in rank order: quick enough for 64 of them."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=30)
        self._slots: list[torch.Tensor] = [torch.empty(0)] * world_size

    def all(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._slots[rank] = tensor.clone()
        self._barrier.wait()
        taken = list(self._slots)
        self._barrier.wait()
        return taken


class SharedExchange:
    def __init__(self, shared: SharedMemory, rank: int) -> None:
        self._shared = shared
        self.rank = rank
        self.world_size = shared.world_size

    def sum(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        first, *others = self._shared.all(self.rank, tensor)
        tensor.copy_(first)
        for other in others:
            tensor.add_(other)  # in its own dtype: an int8 that overflows wraps
        return done(tensor)

    def gather(self, tensor: torch.Tensor) -> Future[torch.Tensor]:
        return done(torch.stack(self._shared.all(self.rank, tensor)))


def done(tensor: torch.Tensor) -> Future[torch.Tensor]:
    future: Future[torch.Tensor] = Future()
    future.set_result(tensor)
    return future


def run_shared(
    world_size: int, work: Callable[[SharedExchange], list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    shared = SharedMemory(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: work(SharedExchange(shared, rank)), range(world_size)))


def noise(seed: int, numel: int) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def input_of(rank: int, step: int, numel: int, world_size: int, dtype: torch.dtype) -> torch.Tensor:
    value = noise(rank, numel) + 0.3 * noise(1000 + 64 * step + rank, numel)
    return (value / world_size).to(dtype)


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([tensor.double() for tensor in tensors]).sum(0)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def split(buffer: torch.Tensor, layouts: Sequence[GradientLayout]) -> list[Gradient]:
    parts = buffer.split([layout.numel for layout in layouts])
    return [Gradient(part, layout) for part, layout in zip(parts, layouts, strict=True)]


def spoil(step: int, exchange: SharedExchange, gradients: Sequence[Gradient]) -> None:
    """One rank's gradients have a NaN or an infinity in every bucket."""
    if exchange.rank == step % exchange.world_size:
        for gradient in gradients:
            place = step % gradient.buffer.numel()
            gradient.buffer[place] = (float("nan"), float("inf"), -float("inf"))[step % 3]


def check_conserves(
    name: str,
    world_size: int,
    dtype: torch.dtype,
    by_step: Sequence[Sequence[GradientLayout]],
    skipped: Sequence[int] = (),
) -> None:
    """What went in has come out or is in the memory; in ``skipped`` steps there are NaNs."""
    numel = sum(layout.numel for layout in by_step[0])

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        made, memory, results = codec(name, world_size), ErrorFeedback(), []
        for step, layouts in enumerate(by_step):
            buffer = input_of(exchange.rank, step, numel, world_size, dtype)
            gradients = split(buffer, layouts)
            if step in skipped:
                spoil(step, exchange, gradients)
            for gradient in gradients:
                made.reduce(gradient, exchange, memory)
                assert torch.isfinite(gradient.buffer).all() == (step not in skipped), (name, step)
            results.append(buffer)
        left = torch.zeros(numel, dtype=torch.float64)
        for gradient in split(left, by_step[-1]):
            memory.flush(gradient)
        assert memory.empty
        return [*(one for step, one in enumerate(results) if step not in skipped), left]

    by_rank = run_shared(world_size, work)
    for results in by_rank[1:]:
        assert all(map(torch.equal, results[:-1], by_rank[0][:-1])), name
    steps = [step for step in range(len(by_step)) if step not in skipped]
    put_in = total(
        [input_of(r, s, numel, world_size, dtype) for r in range(world_size) for s in steps]
    )
    came_out = total(by_rank[0][:-1]) + total([results[-1] for results in by_rank])
    # The sum is rounded after each addition in every step.
    allowed = world_size * rounding(name, dtype) * len(steps)
    assert relative(came_out, put_in) <= allowed, (name, dtype)


def rounding(name: str, dtype: torch.dtype) -> float:
    """Of the sum, relative."""
    return max(LOSSY.get(name, 0), ROUNDING[dtype]) if dtype.itemsize > 2 else ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_lost_and_a_nan_leaves_no_trace(name: str, dtype: torch.dtype) -> None:
    shapes = {"m": (40, 30), "b": (31,), "c": (32, 3, 3, 3), "s": (1,), "n": (40, 30)}
    together = GradientLayout.of(shapes)
    apart = [GradientLayout.of({key: shapes[key] for key in keys}) for keys in ("nb", "cs", "m")]
    assert sum(layout.numel for layout in apart) == together.numel
    plan = [[together]] * 9
    check_conserves(name, 3, dtype, plan, skipped=(2, 3, 4))
    # Other buckets: the order within a step changes, so each parameter has its own numbers.
    by_key(name, dtype, shapes, [together], apart)


def by_key(
    name: str,
    dtype: torch.dtype,
    shapes: dict[str, tuple[int, ...]],
    first: Sequence[GradientLayout],
    then: Sequence[GradientLayout],
) -> None:
    """Regrouped and back: each parameter keeps what belongs to it."""

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        made, memory = codec(name, 2), ErrorFeedback()
        sums = {key: torch.zeros(shape).double().flatten() for key, shape in shapes.items()}
        for step in range(8):
            for layout in then if 3 <= step < 6 else first:
                buffer = torch.cat(
                    [
                        noise(ord(str(one.key)) + exchange.rank, one.numel) / 2
                        for one in layout.slices
                    ]
                ).to(dtype)
                made.reduce(Gradient(buffer, layout), exchange, memory)
                if step == 7:
                    rest = torch.zeros(layout.numel, dtype=torch.float64)
                    memory.flush(Gradient(rest, layout))
                    exchange.sum(rest).wait()
                    buffer = buffer.double() + rest
                for key, offset, numel, _ in layout.slices:
                    sums[str(key)] += buffer[offset : offset + numel].double()
        return list(sums.values())

    found = run_shared(2, work)[0]
    for (key, shape), one in zip(shapes.items(), found, strict=True):
        numel = torch.Size(shape).numel()
        exact = sum(8 * (noise(ord(key) + rank, numel) / 2).to(dtype).double() for rank in (0, 1))
        assert isinstance(exact, torch.Tensor)
        assert relative(one, exact) <= 32 * rounding(name, dtype), (name, key)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_sizes_and_any_regrouping(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(EVERY))
    dtype = data.draw(st.sampled_from(list(ROUNDING)))
    shape = st.lists(st.integers(1, 40), min_size=0, max_size=3).map(tuple)
    shapes = dict(enumerate(data.draw(st.lists(shape, min_size=1, max_size=6))))
    plan = []
    for _ in range(4):
        cut = data.draw(st.integers(1, len(shapes)))
        groups = [list(shapes)[:cut], list(shapes)[cut:]]
        plan.append(
            [GradientLayout.of({key: shapes[key] for key in group}) for group in groups if group]
        )
    check_conserves(name, data.draw(st.integers(2, 4)), dtype, plan)


@pytest.mark.torch
@pytest.mark.parametrize("name", EVERY)
def test_by_gloo_all_ranks_have_the_same_bits(name: str) -> None:
    layout = GradientLayout.of({"m": (65, 63), "b": (1001,)})

    def work(fabric: ThreadFabric) -> list[torch.Tensor]:
        exchange, made = GroupExchange(fabric.parent), codec(name, fabric.world_size)
        memory, results = ErrorFeedback(), []
        for step in range(4):
            buffer = input_of(fabric.rank, step, layout.numel, 3, torch.float32)
            made.reduce(Gradient(buffer, layout), exchange, memory)
            results.append(buffer)
        return results

    first, *others = run_ranks(3, work)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 16, 63, 64])
def test_int8_never_overflows(world_size: int) -> None:
    """Every rank rounds up at once, and all have the largest magnitude at the same place."""
    levels = 127 - world_size / 2
    half = (int(levels / world_size - 0.5) + 0.5) * world_size / levels  # q = integer + 1/2
    values = torch.tensor([1.0, -1.0, half, -half * 1.0001, half * 1.0001, 0.0])
    layout = GradientLayout.of({"x": (len(values),)})

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        buffer = values.clone()
        codec("int8", world_size).reduce(Gradient(buffer, layout), exchange, ErrorFeedback())
        return [buffer]

    step = world_size / levels
    for (found,) in run_shared(world_size, work):
        error = (found - world_size * values).abs().max()
        assert error <= 1.001 * world_size * step / 2


def test_int8_keeps_small_blocks_apart_from_large_ones() -> None:
    layout = GradientLayout.of({"x": (700,)})
    values = torch.cat([1e6 * noise(1, 256), 1e-6 * noise(2, 256), 1e-35 * noise(3, 188)]).float()

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        buffer, memory = values.clone(), ErrorFeedback()
        codec("int8").reduce(Gradient(buffer, layout), exchange, memory)
        memory_only = torch.zeros_like(buffer)
        memory.flush(Gradient(memory_only, layout))
        return [buffer, memory_only]

    found, rest = run_shared(2, work)[0]
    assert relative(found[:256], 2 * values[:256].double()) < 0.02
    assert relative(found[256:512], 2 * values[256:512].double()) < 0.02
    # Too small for a scale: kept for later, not lost.
    assert torch.equal(found[512:], torch.zeros(188))
    assert torch.equal(rest[512:], values[512:])


def test_powersgd_finds_a_matrix_of_its_rank_exactly() -> None:
    layout = GradientLayout.of({"m": (30, 50), "v": (7,)})
    matrix = noise(1, 60).view(30, 2) @ noise(2, 100).view(2, 50)
    values = torch.cat([matrix.flatten(), noise(3, 7)])

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        made, memory = codec("powersgd:2"), ErrorFeedback()
        buffer = values * (exchange.rank + 1)
        made.reduce(Gradient(buffer, layout), exchange, memory)
        return [buffer]

    for (found,) in run_shared(2, work):
        assert relative(found, 3 * values) < 1e-9


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_powersgd_comes_back_from_a_parameter_that_was_unused(rank: int) -> None:
    layout = GradientLayout.of({"m": (30, 50)})
    matrix = noise(1, 1500)

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        made, memory = codec(f"powersgd:{rank}"), ErrorFeedback()
        came_out = torch.zeros(1500, dtype=torch.float64)
        for step in range(200):
            buffer = matrix.clone() if step > 2 else torch.zeros_like(matrix)
            made.reduce(Gradient(buffer, layout), exchange, memory)
            came_out += buffer
        return [came_out / 197]

    (found,) = run_shared(1, work)[0]
    assert relative(found, matrix) < 0.15


def test_powersgd_shrinks_very_small_and_very_large_gradients_alike() -> None:
    layout = GradientLayout.of({"m": (40, 40)})

    def result(scale: float) -> torch.Tensor:
        def work(exchange: SharedExchange) -> list[torch.Tensor]:
            made, memory = codec("powersgd:2"), ErrorFeedback()
            for _ in range(20):
                buffer = (scale * noise(1, 1600)).float()
                made.reduce(Gradient(buffer, layout), exchange, memory)
            return [buffer.double() / scale]

        return run_shared(1, work)[0][0]

    for scale in (2.0**-60, 2.0**60):
        assert relative(result(scale), result(1.0)) < 1e-3


def test_topk_sends_the_largest_of_every_block() -> None:
    values = noise(1, 3 * 1024).float()
    layout = GradientLayout.of({"x": (3 * 1024,)})

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        buffer = values.clone()
        codec("topk:0.01").reduce(Gradient(buffer, layout), exchange, ErrorFeedback())
        return [buffer]

    (found,) = run_shared(1, work)[0]
    for block, exact in zip(found.view(3, 1024), values.view(3, 1024), strict=True):
        sent = block.nonzero().flatten()
        assert sorted(sent.tolist()) == sorted(exact.abs().topk(10).indices.tolist())
        assert torch.equal(block[sent], exact[sent])


def test_the_next_codec_sends_what_the_last_one_has_not() -> None:
    layout = GradientLayout.of({"m": (40, 40), "b": (10,)})

    def work(exchange: SharedExchange) -> list[torch.Tensor]:
        memory, came_out = ErrorFeedback(), torch.zeros(1610, dtype=torch.float64)
        for name in ("topk:0.05", "int8", "powersgd:1", "int8", "topk:0.05", "none"):
            buffer = input_of(exchange.rank, 0, 1610, 2, torch.float64)
            codec(name).reduce(Gradient(buffer, layout), exchange, memory)
            came_out += buffer
        assert memory.empty
        return [came_out]

    exact = 6 * total([input_of(rank, 0, 1610, 2, torch.float64) for rank in (0, 1)])
    for (found,) in run_shared(2, work):
        assert relative(found, exact) < 1e-12


def test_layouts_know_how_a_tensor_lies_in_memory() -> None:
    layouts = Layouts()
    linear = torch.zeros(6, 4)
    kernel = torch.zeros(8, 3, 5, 5).to(memory_format=torch.channels_last)
    holes = torch.zeros(6, 8)[:, ::2]
    parameters = [linear, linear.t(), kernel, torch.zeros(1, 7), torch.zeros(()), holes]
    layout = layouts.of(parameters)
    assert [one.shape for one in layout.slices] == [
        (6, 4),
        (6, 4),
        (8, 5, 5, 3),
        (7,),
        (),
        (6, 4),
    ]
    assert [one.offset for one in layout.slices] == [0, 24, 48, 648, 655, 656]
    assert layout.numel == 680
    assert layouts.of(list(parameters)) is layout


def test_a_gradient_must_fit_its_layout() -> None:
    with pytest.raises(ValueError, match="11 elements"):
        Gradient(torch.zeros(10), GradientLayout.of({"x": (11,)}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zip", "unknown codec 'zip'; known are none, bf16"),
        ("none:1", "none has no options"),
        ("bf16:feed", "the only option is 'feedback'"),
        ("int8:128", "int8 has no options"),
        ("powersgd:0", "rank, 1 to 256, got '0'"),
        ("powersgd:1.5", "rank, 1 to 256"),
        ("topk:0", "fraction"),
        ("topk:nan", "fraction"),
        ("topk:half", "got 'half'"),
    ],
)
def test_wrong_options_are_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        codec(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_int8_refuses_a_job_that_is_too_large() -> None:
    with pytest.raises(ConfigError, match="65 ranks, it can serve 64"):
        codec("int8", 65)


def test_third_parties_add_codecs_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_codecs.py").write_text(
        "class Third:\n    max_world_size = 8\n    def __init__(self, options):\n"
        "        self.options = options\n"
    )
    info = tmp_path / "their_codecs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-codecs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[trainmesh.hooks]\ncodec.third = their_codecs:Third\ncodec.broken = their_codecs:Fourth\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert codec("third:7", 8).options == "7"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"'broken' can't be loaded"):
        codec("broken")


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("none", 1), ("bf16", 2), ("fp16", 2), ("int8", 3.93), ("powersgd:4", 128), ("topk:0.01", 34)],
)
def test_fewer_bytes(name: str, ratio: float) -> None:
    """For 4 ranks and a matrix of 1 024 x 1 024; check_codec compares with what is sent."""
    wire_bytes = codec(name).wire_bytes([(1024, 1024)], 4, 4)
    assert 4 * 2**20 / wire_bytes == pytest.approx(ratio, rel=0.1 if ratio > 4 else 0.01)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_can_be_timed(name: str) -> None:
    cost = measure_cost(name, [(64, 64), (100,)], torch.float32, torch.device("cpu"), 4)
    assert cost.encode_s > 0
    assert cost.decode_s > 0


def test_compressing_pays_where_the_links_are_slow() -> None:
    beta = 2 * 3 / 4 / 125e6  # ring of 4, 1 Gbit/s
    pays, reason = worth(25e6, 4, 0.009, 0.008, 0.0002, beta)
    assert pays
    assert reason.startswith("pays: a bucket of 25 MB would take 225 ms less")
    assert not worth(25e6, 4, 0.009, 0.008, 0.0002, beta / 100).pays
    assert not worth(25e6, 4, 0.009, 0.008, 1.0, beta).pays
    assert not worth(25e6, 0.5, 0, 0, 0, beta).pays
    # Equal is not enough.
    assert not worth(8e6, 2, 0.5, 0.5, 0, 1 / 4e6).pays
