"""Hand-computed steps: transfer, exposure, and which reports belong together."""

import pytest

from trainmesh.coordinator.measure import MAX_PARTIAL, StepWindow, exposed_s, measure
from trainmesh.types import BucketTiming, StepReport

MS = 1_000_000


def report(
    rank: int,
    step: int = 5,
    epoch: int = 0,
    late_ms: int = 0,
    buckets: tuple[BucketTiming, ...] | None = None,
) -> StepReport:
    """Two buckets: the ranks wait for the latest, then transfer 4 ms and 2 ms."""
    if buckets is None:
        buckets = (
            BucketTiming(0, 400, (10 + late_ms) * MS, (10 + late_ms) * MS, 24 * MS),
            BucketTiming(1, 200, (20 + late_ms) * MS, (20 + late_ms) * MS, 32 * MS),
        )
    return StepReport(rank, 0, step, epoch, 0, 40 * MS, None, buckets)


def near(*pairs: tuple[int, float]) -> object:
    """Equal to pairs of a size and about a time."""
    return tuple((size, pytest.approx(seconds)) for size, seconds in pairs)


def test_transfer_is_what_the_last_rank_to_arrive_sees() -> None:
    measured = measure([report(0), report(1, late_ms=10)])
    assert measured is not None
    assert measured.transfers == near((400, 0.004), (200, 0.002))
    assert measured.step_time_s == pytest.approx(0.040)


def test_exposed_is_the_wait_after_the_last_gradient() -> None:
    assert exposed_s(report(0)) == pytest.approx(0.012)
    assert exposed_s(report(0, buckets=())) == 0
    measured = measure([report(0), report(1, late_ms=10)])
    assert measured is not None
    assert measured.exposed_share == pytest.approx((0.012 + 0.002) / 2 / 0.040)


def test_reports_of_different_shape_or_epoch_are_no_step() -> None:
    assert measure([report(0), report(1, epoch=1)]) is None
    assert measure([report(0), report(1, buckets=report(1).buckets[:1])]) is None
    assert measure([report(0, buckets=()), report(1, buckets=())]) is None


def fused(late_ms: int = 0, *, split: bool = False) -> StepReport:
    """Three buckets that arrive together; the first two are reduced as one, the third waits for
    them."""
    start = late_ms * MS
    buckets = (
        BucketTiming(0, 400, start, start, 10 * MS),
        BucketTiming(1, 200, start, start, 10 * MS - split),
        BucketTiming(2, 300, start + MS, start + MS, 16 * MS),
    )
    return report(late_ms, late_ms=late_ms, buckets=buckets)


def test_fused_buckets_are_one_collective_and_the_queue_is_not_counted() -> None:
    measured = measure([fused(), fused(late_ms=4)])
    assert measured is not None
    assert measured.collectives == near((600, 0.006), (300, 0.006))
    assert measured.transfer_s == pytest.approx(0.012)
    assert measured.sizes == (400, 200, 300)
    assert measured.arrivals_s[:2] == (0.0, 0.0)
    assert measured.arrivals_s[2:] == pytest.approx((0.001,))


def test_ranks_that_do_not_agree_what_was_fused_are_no_step() -> None:
    assert measure([fused(), fused(split=True)]) is None


def test_collectives_of_one_size_share_the_network() -> None:
    """Two at once end at nearly the same time: each costs half of it."""
    buckets = (BucketTiming(0, 400, 0, 0, 19 * MS), BucketTiming(1, 400, 0, 0, 20 * MS))
    measured = measure([report(0, buckets=buckets)])
    assert measured is not None
    assert measured.by_size == near((400, 0.010))


def test_different_sizes_that_share_the_network_count_as_one() -> None:
    """Half of the network each, until the small one ends: neither time says what it costs."""
    buckets = (BucketTiming(0, 100, 0, 0, 2 * MS), BucketTiming(1, 900, 0, 0, 10 * MS))
    measured = measure([report(0, buckets=buckets), report(1, buckets=buckets)])
    assert measured is not None
    assert measured.by_size == near((1000, 0.010))
    assert measured.services == near((100, 0.002), (900, 0.008))


def test_a_step_counts_when_every_rank_has_reported_it() -> None:
    window = StepWindow(2)
    window.add(report(0))
    assert not window.steps
    window.add(report(1))
    assert [step.step for step in window.of_epoch(0)] == [5]
    assert window.of_epoch(1) == []


def test_the_first_steps_and_other_modules_do_not_count() -> None:
    window = StepWindow(1)
    window.add(report(0, step=0))
    window.add(report(0, step=1))
    other = report(0)
    window.add(StepReport(0, 1, 5, 0, 0, 1, None, other.buckets))
    assert not window.steps


def test_steps_that_stay_incomplete_are_forgotten() -> None:
    window = StepWindow(2)
    for number in range(2, 2 + 10 * MAX_PARTIAL):
        window.add(report(0, step=number))
    assert len(window._partial) <= MAX_PARTIAL
