"""Every executor sums right, and alike on all ranks."""

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hooks.ranks import ThreadFabric, run_ranks
from trainmesh.hooks.executor import Executor, GroupFactory
from trainmesh.hooks.executors.registry import load
from trainmesh.hooks.executors.rounds import RoundOp, RoundsExecutor, rounds
from trainmesh.hooks.timing import Mark
from trainmesh.types import Algorithm, Hop, Plan, Tree

pytestmark = pytest.mark.torch

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def chain(order: Sequence[int], share: float) -> Tree:
    hops = tuple(Hop(a, b) for a, b in zip(order, order[1:], strict=False))
    back = tuple(Hop(hop.dst, hop.src) for hop in reversed(hops))
    return Tree(order[-1], share, hops, back)


def plans(world_size: int) -> dict[str, Plan]:
    """A plan of every kind."""
    ranks = tuple(range(world_size))
    halves = (ranks[: world_size // 2], ranks[world_size // 2 :])
    uneven = ((0,), ranks[1:])
    shares = tuple((rank + 1) / sum(r + 1 for r in ranks) for rank in ranks)
    backwards = tuple(reversed(ranks))
    kinds = {
        "native": Plan(algorithm="native", world_size=world_size, order=ranks),
        "one ring": Plan(algorithm="ring", world_size=world_size, order=backwards),
        "two rings": Plan(
            algorithm="ring",
            world_size=world_size,
            order=ranks,
            rings=(ranks, backwards),
            shares=(0.3, 0.7),
        ),
        "unequal islands": Plan(
            algorithm="hierarchical", world_size=world_size, order=ranks, islands=uneven
        ),
        "sharded": Plan(algorithm="sharded", world_size=world_size, order=ranks, shares=shares),
        "nobody's share": Plan(
            algorithm="sharded",
            world_size=world_size,
            order=ranks,
            shares=(1.0, *(0.0 for _ in ranks[1:])),
        ),
        "tree": Plan(
            algorithm="tree", world_size=world_size, order=ranks, trees=(chain(ranks, 1.0),)
        ),
        "forest": Plan(
            algorithm="forest",
            world_size=world_size,
            order=ranks,
            trees=(chain(ranks, 0.625), chain(backwards, 0.375)),
            nbytes=1000,
            num_chunks=4,
        ),
    }
    if world_size % 2 == 0:
        equal = Plan(algorithm="hierarchical", world_size=world_size, order=ranks, islands=halves)
        kinds["equal islands"] = equal
    if world_size == 8:
        quarters = tuple(ranks[i : i + 2] for i in range(0, 8, 2))
        kinds["three levels"] = Plan(
            algorithm="hierarchical",
            world_size=8,
            order=ranks,
            islands=quarters,
            levels=(quarters, halves),
        )
        kinds["shares by place"] = Plan(
            algorithm="hierarchical",
            world_size=8,
            order=ranks,
            islands=quarters,
            shares=(0.25, 0.75),
        )
    return kinds


def gradient(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + numel)
    return torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype)


Make = Callable[[Plan, GroupFactory], Executor]


def check(
    plan: Plan, sizes: Sequence[int], dtypes: Sequence[torch.dtype], make: Make | None = None
) -> None:
    """All buckets in flight at once, twice in a row."""
    cases = [(numel, dtype) for numel in sizes for dtype in dtypes]

    def work(fabric: ThreadFabric) -> list[torch.Tensor]:
        executor = (make or load(plan.algorithm))(plan, fabric)
        for _ in range(2):
            buffers = [gradient(fabric.rank, *case) for case in cases]
            futures = [executor.reduce(buffer, Mark(0, buffer.nbytes)) for buffer in buffers]
            results = [future.wait() for future in futures]
            assert all(a is b for a, b in zip(results, buffers, strict=True))
        executor.close()
        return results

    by_rank = run_ranks(plan.world_size, work)
    for place, (numel, dtype) in enumerate(cases):
        first = by_rank[0][place]
        exact = sum(
            gradient(rank, numel, dtype).to(torch.float64) for rank in range(plan.world_size)
        )
        error = (first.to(torch.float64) - exact).abs().max()
        assert error <= TOLERANCE[dtype] * plan.world_size, (plan.algorithm, numel, dtype)
        for other in by_rank[1:]:
            assert torch.equal(other[place], first), (plan.algorithm, numel, dtype)


@pytest.mark.parametrize(
    "world_size", [2, 3, 4, *(pytest.param(n, marks=pytest.mark.soak) for n in (5, 6, 7)), 8]
)
def test_sums_are_right_and_equal_bit_for_bit(world_size: int) -> None:
    for plan in plans(world_size).values():
        check(plan, [1, 2, world_size + 1, 1_001, 100_003], DTYPES)


@pytest.mark.parametrize("world_size", [2, 3, pytest.param(5, marks=pytest.mark.soak), 8])
def test_sums_in_rounds_are_right_and_equal_bit_for_bit(world_size: int) -> None:
    """What NCCL groups get, over gloo."""
    for name, plan in plans(world_size).items():
        if name not in ("native", "one ring"):
            sizes = [1, 2, world_size + 1, 1_001, 100_003]
            check(plan, sizes, DTYPES, RoundsExecutor)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_trees_over_any_sizes(data: st.DataObject) -> None:
    plan = drawn_plan(data)
    sizes = data.draw(st.lists(st.integers(1, 150_000), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from(DTYPES))
    check(plan, sizes, [dtype])
    check(plan, sizes, [dtype], RoundsExecutor)


def drawn_plan(data: st.DataObject) -> Plan:
    world_size = data.draw(st.integers(2, 6))
    count = data.draw(st.integers(1, 4))
    weights = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    found = []
    for weight in weights:
        order = data.draw(st.permutations(range(world_size)))
        parents = [data.draw(st.integers(0, place - 1)) for place in range(1, world_size)]
        down = tuple(
            Hop(order[parent], order[place]) for place, parent in enumerate(parents, start=1)
        )
        up = tuple(Hop(hop.dst, hop.src) for hop in reversed(down))
        found.append(Tree(order[0], weight / sum(weights), up, down))
    return Plan(
        algorithm=Algorithm.FOREST,
        world_size=world_size,
        order=tuple(range(world_size)),
        trees=tuple(found),
        nbytes=data.draw(st.integers(1, 10**6)),
        num_chunks=data.draw(st.integers(0, 8)),
    )


def test_a_rank_that_never_comes_is_named_within_the_timeout() -> None:
    for name, plan in plans(4).items():
        if name in ("native", "one ring"):
            continue  # the backend's own words

        end = threading.Barrier(4, timeout=60)

        def work(fabric: ThreadFabric, plan: Plan = plan, end: threading.Barrier = end) -> str:
            executor = load(plan.algorithm)(plan, fabric)
            buffer = torch.ones(1000)
            words = ""
            if fabric.rank != 2:
                with pytest.raises(RuntimeError) as caught:
                    executor.reduce(buffer, Mark(0, buffer.nbytes)).wait()
                words = str(caught.value)
            end.wait()
            return words

        words = run_ranks(4, work, timeout_s=2)
        for rank in (0, 1, 3):
            assert "gradients" in words[rank], (name, rank, words[rank])
        assert any("rank 2 " in text for text in words), (name, words)


@pytest.mark.parametrize("name", ["tree", "two rings"])
def test_a_rank_that_was_gone_before_the_bucket_came_is_named(name: str) -> None:
    """Sending to it fails at once, where the hook is called; that error once named nobody."""
    plan = plans(3)[name]
    gone = threading.Barrier(3, timeout=60)

    def work(fabric: ThreadFabric) -> str:
        executor = load(plan.algorithm)(plan, fabric)
        executor.reduce(torch.ones(1000), Mark(0, 4000)).wait()
        if fabric.rank == 2:
            executor.close()
            del executor
            gc.collect()  # closes its connections
            gone.wait()
            return ""
        gone.wait()
        time.sleep(0.2)
        future = executor.reduce(torch.ones(1000), Mark(0, 4000))
        with pytest.raises(RuntimeError) as caught:
            future.wait()
        return str(caught.value)

    words = run_ranks(3, work, timeout_s=2)
    assert all("gradients" in words[rank] and "rank " in words[rank] for rank in (0, 1)), words


@pytest.mark.parametrize("seed", range(12))
def test_many_pieces_and_little_room_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that may hold a piece or two only, in trees that cross each other: it once waited for
    another child's turn, which waited for what this lane did not take."""
    monkeypatch.setattr("trainmesh.hooks.executors.pipeline.MIN_PIECE_BYTES", 512)
    monkeypatch.setattr("trainmesh.hooks.executors.pipeline.AHEAD_BYTES", 512)
    monkeypatch.setattr("trainmesh.hooks.executors.pipeline.AHEAD_PIECES", 1 + seed % 2)
    draw = random.Random(seed)
    found = []
    for _ in range(8):
        order = draw.sample(range(8), 8)
        down = tuple(Hop(order[draw.randrange(place)], order[place]) for place in range(1, 8))
        up = tuple(Hop(hop.dst, hop.src) for hop in reversed(down))
        found.append(Tree(order[0], 0.125, up, down))
    ranks = tuple(range(8))
    check(
        Plan(algorithm="forest", world_size=8, order=ranks, trees=tuple(found)),
        [20_011, 5_003],
        [torch.float32],
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_rounds_of_all_ranks_fit_together(data: st.DataObject) -> None:
    """What one sends the other expects, in the same order; nothing is sent before it is complete;
    and a pipeline is as long as its pieces and its deepest tree."""
    plan = drawn_plan(data)
    counts = [data.draw(st.integers(0, 5)) for _ in plan.trees]
    by_rank = [list(rounds(plan.trees, counts, rank)) for rank in range(plan.world_size)]
    sent: dict[tuple[int, int], list[tuple[int, int]]] = {}
    received: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for rank, turns in enumerate(by_rank):
        for ops in turns:
            for op in ops:
                pair = (op.peer, rank) if op.receives else (rank, op.peer)
                table = received if op.receives else sent
                table.setdefault(pair, []).append((op.tree, op.piece))
    assert sent == received
    for turns in by_rank:
        assert len(turns) <= max(counts, default=0) + 2 * (plan.world_size - 1)
    for tree, count in enumerate(counts):
        for piece in range(count):
            held = {rank: {rank} for rank in range(plan.world_size)}
            play(by_rank, tree, piece, held)
            assert all(ranks == set(range(plan.world_size)) for ranks in held.values())


def play(
    by_rank: list[list[list[RoundOp]]], tree: int, piece: int, held: dict[int, set[int]]
) -> None:
    """Whose contributions each rank holds of a piece after all messages, each taken when both of
    its ranks have come to its round."""
    queues = [
        [[op for op in ops if (op.tree, op.piece) == (tree, piece)] for ops in turns]
        for turns in by_rank
    ]
    flat = [[op for ops in turns for op in ops] for turns in queues]
    while any(flat):
        moved = False
        for rank, ops in enumerate(flat):
            if ops and ops[0].receives and flat[ops[0].peer]:
                peer = flat[ops[0].peer]
                match = next((o for o in peer if not o.receives and o.peer == rank), None)
                if match is None or any(o.receives for o in peer[: peer.index(match)]):
                    continue
                op = ops.pop(0)
                held[rank] = held[rank] | held[op.peer] if op.adds else set(held[op.peer])
                peer.remove(match)
                moved = True
        assert moved, "a deadlock"


def test_rounds_end_in_an_error_that_says_so() -> None:
    plan = plans(3)["tree"]
    end = threading.Barrier(3, timeout=60)

    def work(fabric: ThreadFabric) -> list[str]:
        executor = RoundsExecutor(plan, fabric)
        words = []
        for _ in range(2 if fabric.rank != 2 else 0):
            with pytest.raises(RuntimeError) as caught:
                executor.reduce(torch.ones(10), Mark(0, 40)).wait()
            words.append(str(caught.value))
        end.wait()
        executor.close()
        return words

    words = run_ranks(3, work, timeout_s=2)
    assert all("could not be summed" in text for text in words[0] + words[1])
    assert len(words[0]) == len(words[1]) == 2


def test_a_backend_that_is_not_gloo_gets_rounds() -> None:
    def work(fabric: ThreadFabric) -> str:
        fabric.backend = "other"
        executor = load("tree")(plans(2)["tree"], fabric)
        executor.close()
        return type(executor).__name__

    assert run_ranks(2, work) == ["RoundsExecutor"] * 2
