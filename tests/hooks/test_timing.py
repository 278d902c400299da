"""StepTimer with the real host clock, and with CUDA events that a test completes by hand."""

from dataclasses import dataclass

import pytest
import torch

from trainmesh.hooks import loss, timing
from trainmesh.hooks.timing import CudaMarks, HostMarks, StepTimer


def test_a_step_runs_from_its_forward_to_the_next_ones() -> None:
    timer = StepTimer(rank=3, module=0, marks=HostMarks())
    timer.forward()
    timer.forward()
    assert timer.begin(0, 0, None) == []
    mark = timer.mark(0, 100)
    mark.start()
    mark.end()
    timer.forward()
    [first] = timer.begin(1, 2, None)
    assert (first.rank, first.step, first.epoch) == (3, 0, 0)
    [bucket] = first.buckets
    assert (bucket.index, bucket.nbytes) == (0, 100)
    times = [first.begin_ns, bucket.arrival_ns, bucket.start_ns, bucket.end_ns, first.end_ns]
    assert times == sorted(times)
    assert timer.begin(2, 2, None)[0].epoch == 2


def test_steps_wait_for_their_buckets_and_the_oldest_is_given_up() -> None:
    timer = StepTimer(rank=0, module=0, marks=HostMarks())
    for number in range(StepTimer.MAX_OPEN + 2):
        timer.begin(number, 0, None)
        last = timer.mark(0, 1)
    assert timer.begin(99, 0, None) == []
    last.end()
    assert timer.finished() == []


@dataclass
class FakeEvent:
    """Stands in for torch.cuda.Event, which needs a GPU: complete once ``done``."""

    at_ms: float
    done: bool = False

    def query(self) -> bool:
        return self.done

    def elapsed_time(self, other: "FakeEvent") -> float:
        return other.at_ms - self.at_ms


def test_cuda_times_are_read_when_their_events_have_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[FakeEvent] = []

    def event() -> FakeEvent:
        events.append(FakeEvent(at_ms=10.0 * len(events)))
        return events[-1]

    monkeypatch.setattr(timing, "_event", event)
    timer = StepTimer(rank=0, module=0, marks=CudaMarks())
    timer.begin(0, 0, None)
    mark = timer.mark(0, 100)  # anchor at 0 ms, arrival at 10 ms
    mark.start()  # 20 ms
    mark.end()  # 30 ms
    assert timer.begin(1, 0, None) == []
    assert len(events) == 4
    events[-1].done = True
    [report] = timer.finished()
    [bucket] = report.buckets
    assert bucket.start_ns - bucket.arrival_ns == 10_000_000
    assert bucket.end_ns - bucket.start_ns == 10_000_000


@pytest.mark.parametrize(("step_ms", "stride"), [(200, 1), (125, 1), (100, 2), (10, 16), (1, 64)])
def test_of_many_short_steps_some_have_their_buckets_timed(
    monkeypatch: pytest.MonkeyPatch, step_ms: int, stride: int
) -> None:
    """About eight a second, as many as an agent publishes, after a first window of all of them."""
    now_ns = 10**9
    monkeypatch.setattr(timing, "monotonic_ns", lambda: now_ns)
    timer = StepTimer(rank=0, module=0, marks=HostMarks())
    timed = []
    for number in range(4 * StepTimer.WINDOW):
        timer.begin(number, 0, None)
        if timer.is_detailed:
            timed.append(number)
        now_ns += step_ms * 10**6
    window = range(StepTimer.WINDOW)
    assert timed == [*window, *range(StepTimer.WINDOW, 4 * StepTimer.WINDOW, stride)]


def test_a_loss_is_taken_where_it_is_wanted() -> None:
    for is_wanted in (True, False, True):
        loss.want(is_wanted)
        loss._note(torch.tensor(2.5))
        pending = loss.take()
        assert (pending is not None and pending.value() == 2.5) == is_wanted
