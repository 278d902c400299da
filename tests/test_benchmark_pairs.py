"""The interval that benchmarks print."""

import random

import pytest

from benchmarks.pairs import compare


def test_the_interval_holds_the_ratio_and_shrinks_with_pairs() -> None:
    draw = random.Random(3)

    def measured(num: int) -> list[tuple[float, float]]:
        machine = [draw.uniform(9, 11) for _ in range(num)]
        return [(one, 1.02 * one * draw.gauss(1, 0.01)) for one in machine]

    few, many = compare(measured(10)), compare(measured(400))
    assert few.low < few.ratio < few.high
    assert many.low < 1.02 < many.high
    assert many.high - many.low < few.high - few.low


def test_equal_pairs_leave_no_doubt() -> None:
    found = compare([(10.0, 10.5)] * 4)
    assert (found.ratio, found.low, found.high) == pytest.approx((1.05, 1.05, 1.05))
    assert str(found) == "1.0500 (95 % interval 1.0500 to 1.0500, 4 pairs)"
