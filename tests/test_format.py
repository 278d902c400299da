"""Numbers for people, and what a reader makes of them."""

import random

from trainmesh.units import duration, quotient, speedup


def test_a_quotient_is_that_of_the_printed_numbers() -> None:
    draw = random.Random(3)
    for _ in range(500):
        a_s, b_s = (10 ** draw.uniform(-6, 3) for _ in range(2))
        number_a, unit_a = duration(a_s).split()
        number_b, unit_b = duration(b_s).split()
        units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
        read = float(number_a) * units[unit_a] / (float(number_b) * units[unit_b])
        assert quotient(a_s, b_s) == read
        assert speedup(a_s, b_s) == f"{read:.2f}x"
    assert quotient(0.0, 1.0) == quotient(1.0, 0.0) == 1.0
