"""The harness for hook authors passes what is right and says what is wrong with the rest."""

import os
import threading
from collections.abc import Sequence

import pytest
import torch
from torch.futures import Future

from trainmesh.errors import ConfigError
from trainmesh.hooks.codecs import CodecCollectives, ErrorFeedback, Gradient
from trainmesh.hooks.codecs.cast import Plain
from trainmesh.hooks.executor import GroupFactory
from trainmesh.hooks.testing import check_codec, check_executor, example_plan
from trainmesh.hooks.testing.__main__ import main
from trainmesh.hooks.timing import Mark
from trainmesh.plan.shape import check_shape
from trainmesh.types import Algorithm, Plan

pytestmark = pytest.mark.torch

EXAMPLE = "examples/my_hook.py"


class Right:
    """What all broken executors below are but for one thing."""

    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None:
        self.group_factory = group_factory
        group = group_factory.new_group(plan.order)
        assert group is not None
        self.group = group

    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        rank, change = self.group_factory.rank, self.finish  # self would hold the group

        def finish(done: Future[list[torch.Tensor]]) -> torch.Tensor:
            change(done.value()[0], rank)
            mark.end()
            return buffer

        return self.group.allreduce([buffer]).get_future().then(finish)

    @staticmethod
    def finish(buffer: torch.Tensor, rank: int) -> None:
        pass

    def close(self) -> None:
        self.group_factory.release(self.group)


class Blocking(Right):
    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        future = super().reduce(buffer, mark)
        future.wait()
        return future


class Copying(Right):
    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        return super().reduce(buffer.clone(), mark)


class Unmarked(Right):
    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        return super().reduce(buffer, Mark(0, 0))


class OnDefaultGroup(Right):
    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        self.group = self.group_factory.parent
        return super().reduce(buffer, mark)

    def close(self) -> None:
        pass


class Off(Right):
    """By four bits of the last, in one element."""

    @staticmethod
    def finish(buffer: torch.Tensor, rank: int) -> None:
        buffer[-1] *= 1 + 8 * torch.finfo(buffer.dtype).eps


class Differing(Right):
    """By one bit, on one rank: well within rounding."""

    @staticmethod
    def finish(buffer: torch.Tensor, rank: int) -> None:
        if rank == 1:
            buffer.view(torch.int32)[0] ^= 1


class KeepingGroups(Right):
    def close(self) -> None:
        pass


class KeepingThreads(Right):
    def close(self) -> None:
        super().close()
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class Dying(Right):
    def reduce(self, buffer: torch.Tensor, mark: Mark) -> Future[torch.Tensor]:
        if self.group_factory.rank == 1:
            os._exit(7)
        return super().reduce(buffer, mark)


class Raising(Right):
    def __init__(self, plan: Plan, group_factory: GroupFactory) -> None:
        raise RuntimeError("no such cable")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Blocking, "does not return before its peers call theirs"),
        (Copying, "reduce in place"),
        (Unmarked, r"mark.end\(\) was not called"),
        (OnDefaultGroup, "uses the job's default process group"),
        (Off, r"bucket 0 of 3 elements, torch.float32: wrong sum"),
        (Differing, "ranks 0 and 1 have different results"),
        (KeepingGroups, "leaves 1 process groups unreleased"),
        (KeepingThreads, "leaves threads behind: 3 more"),
        (Dying, "rank 1: its process ended with status 7"),
        (Raising, "RuntimeError: no such cable"),
    ],
)
def test_a_wrong_executor_is_told_what_is_wrong(broken: type, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_executor(broken, world_sizes=(2,), dtypes=(torch.float32,), sizes=(3, 1000))


def test_a_right_executor_passes() -> None:
    report = check_executor(f"{EXAMPLE}:GatherExecutor", world_sizes=(2, 3), sizes=(1, 5, 4_099))
    assert report.num_results == 2 * 4 * 3 * 2  # world sizes, dtypes, sizes, rounds


class Unrepentant(Plain):
    """Sends a half, and forgets the rest."""

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        gradient.buffer[::2] = gradient.buffer[::2] * 0
        super().reduce(gradient, exchange, memory)


class Hoarding(Plain):
    """Sends nothing, and remembers everything."""

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        everything = torch.empty_like(gradient.buffer)
        memory.add_to(gradient, everything)
        gradient.buffer.mul_(0)
        exchange.sum(gradient.buffer).wait()
        memory.keep(gradient, everything, torch.isfinite(gradient.buffer).all())


class Local(Plain):
    """Every rank keeps a little of its own."""

    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        super().reduce(gradient, exchange, memory)
        gradient.buffer.mul_(1 + 1e-6 * exchange.rank)


class Smoothing(Plain):
    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        super().reduce(gradient, exchange, memory)
        gradient.buffer.nan_to_num_(0, 0, 0)


class Boasting(Plain):
    def wire_bytes(self, shapes: Sequence[Sequence[int]], itemsize: int, world_size: int) -> float:
        return super().wire_bytes(shapes, itemsize, world_size) / 2


class Chatting(Plain):
    def reduce(self, gradient: Gradient, exchange: CodecCollectives, memory: ErrorFeedback) -> None:
        exchange.sum(torch.zeros(0)).wait()
        super().reduce(gradient, exchange, memory)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Unrepentant, "gradients are lost"),
        (Hoarding, "what is remembered piles up"),
        (Local, "ranks 0 and 1 have different results"),
        (Smoothing, "nan in one rank's gradient does not reach all ranks"),
        (Boasting, r"wire_bytes\(\) says 2000, it sends 4000"),
        (Chatting, "2 collectives a bucket"),
    ],
)
def test_a_wrong_codec_is_told_what_is_wrong(broken: type, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_codec(broken, world_sizes=(2,), dtypes=(torch.float32,), sizes=(1000,), steps=16)


def test_a_codec_that_is_too_slow_to_send_is_told_so() -> None:
    with pytest.raises(AssertionError, match="what is remembered piles up"):
        check_codec("topk:0.001", world_sizes=(2,), dtypes=(torch.float32,), sizes=(4_099,))


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        (f"{EXAMPLE}:SignCodec", ""),
        ("int8", ""),
        ("powersgd", "2"),
    ],
)
def test_a_right_codec_passes(codec: str, options: str) -> None:
    report = check_codec(
        codec,
        options,
        world_sizes=(3,),
        dtypes=(torch.float32, torch.bfloat16),
        sizes=(3, 1_000),
        steps=32,
    )
    assert report.num_results == 2 * 2 * 32


@pytest.mark.parametrize("algorithm", [*Algorithm, "mine"])
def test_example_plans_are_well_formed(algorithm: str) -> None:
    for world_size in (2, 3, 4, 8):
        check_shape(example_plan(algorithm, world_size), world_size)


def test_from_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["executor", "ring", "--world-sizes", "2"]) == 0
    assert capsys.readouterr().out.startswith("passed: executor ring on 2 ranks, ")
    assert main(["executor", "examples/none.py:Mine", "--world-sizes", "2"]) == 1
    assert "examples/none.py:Mine can't be loaded" in capsys.readouterr().err
    assert main(["codec", "int8", "--world-sizes", "1"]) == 2
    assert capsys.readouterr().err == "error: world sizes must be 2 to 16, got (1,)\n"


def test_what_no_other_process_could_find_is_refused() -> None:
    class Inner(Right):
        pass

    for wanted in (Inner, Right.close, 7):
        with pytest.raises(ConfigError, match="at the top of a module"):
            check_executor(wanted)  # type: ignore[arg-type]
