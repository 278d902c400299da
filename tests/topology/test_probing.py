"""Rounds, message sizes and the fit of alpha and beta."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.topology.measure.probing import (
    LEAST_BYTES,
    SWEEPS,
    exchanged,
    fit_cost,
    ladder,
    rounds,
    summary,
    weighted_median,
)

ALPHA_S = 25e-6
BANDWIDTH = 12.5e6


def exchange_s(nbytes: int) -> float:
    return 2 * ALPHA_S + nbytes / BANDWIDTH


def samples(*, echoes: int = 20, largest: int = 1 << 20) -> list[tuple[int, float]]:
    sizes = [size for size in ladder(1 << 30) if size <= largest]
    return [(0, exchange_s(0))] * echoes + [(n, exchange_s(n)) for n in sizes] * SWEEPS


@settings(derandomize=True)
@given(st.integers(0, 40))
def test_every_pair_once_in_rounds_of_disjoint_pairs(number: int) -> None:
    names = [f"n{index}" for index in range(number)]
    plan = rounds(names)
    assert len(plan) == (0 if number < 2 else number - 1 + number % 2)
    for pairs in plan:
        busy = [name for pair in pairs for name in pair]
        assert len(busy) == len(set(busy))
        assert len(pairs) == number // 2
    assert sorted(pair for pairs in plan for pair in pairs) == sorted(combinations(names, 2))


@settings(derandomize=True)
@given(st.integers(0, 2**34))
def test_the_ladder_stays_within_the_bytes(nbytes: int) -> None:
    sizes = ladder(nbytes)
    assert exchanged(sizes) <= nbytes
    assert len(sizes) != 1
    if nbytes >= LEAST_BYTES:
        assert exchanged([*sizes, 4 * sizes[-1]]) > nbytes
    else:
        assert sizes == []


def test_the_least_bytes_make_two_sizes() -> None:
    assert ladder(LEAST_BYTES) == [4096, 16384]
    assert ladder(LEAST_BYTES - 1) == []


def test_an_exact_line_is_found_exactly() -> None:
    fit = fit_cost(samples())
    assert fit is not None
    assert fit.cost.alpha_s == pytest.approx(ALPHA_S)
    assert fit.cost.bandwidth_bytes_per_s == pytest.approx(BANDWIDTH)
    assert fit.alpha_low_s == pytest.approx(fit.alpha_high_s)
    assert fit.bandwidth_low_bytes_per_s == pytest.approx(fit.bandwidth_high_bytes_per_s)
    assert fit.residual == pytest.approx(0, abs=1e-9)
    assert fit.num_samples == len(samples())


@settings(derandomize=True, max_examples=30)
@given(st.randoms(use_true_random=False))
def test_disturbed_messages_do_not_move_the_fit(chance: random.Random) -> None:
    """One of five sweeps ran into the job's own traffic: ten times as long."""
    sweep = chance.randrange(SWEEPS)
    sizes = ladder(16_000_000)
    disturbed = [(0, exchange_s(0))] * 20 + [
        (n, exchange_s(n) * (10 if number == sweep else chance.uniform(1, 1.02)))
        for number in range(SWEEPS)
        for n in sizes
    ]
    fit = fit_cost(disturbed)
    assert fit is not None
    assert fit.cost.bandwidth_bytes_per_s == pytest.approx(BANDWIDTH, rel=0.03)
    assert fit.cost.alpha_s == pytest.approx(ALPHA_S, rel=0.1)
    assert fit.bandwidth_low_bytes_per_s <= fit.cost.bandwidth_bytes_per_s
    assert fit.cost.bandwidth_bytes_per_s <= fit.bandwidth_high_bytes_per_s
    assert fit == fit_cost(disturbed)


def test_noise_makes_the_interval_wide_and_it_holds_the_truth() -> None:
    chance = random.Random(5)
    noisy = [(n, s * chance.uniform(0.8, 1.2)) for n, s in samples()]
    fit = fit_cost(noisy)
    assert fit is not None
    assert fit.bandwidth_low_bytes_per_s < BANDWIDTH < fit.bandwidth_high_bytes_per_s
    width = fit.bandwidth_high_bytes_per_s - fit.bandwidth_low_bytes_per_s
    assert 0.05 * BANDWIDTH < width < BANDWIDTH


def test_a_token_bucket_in_front_of_the_link_does_not_fool_it() -> None:
    """The first 32 KB of each message go at once, as through tc's tbf."""
    burst = [(n, 2 * ALPHA_S + max(0, n - 32_768) / BANDWIDTH) for n, _ in samples()]
    fit = fit_cost(burst)
    assert fit is not None
    assert fit.cost.bandwidth_bytes_per_s == pytest.approx(BANDWIDTH, rel=0.05)


@pytest.mark.parametrize(
    "few",
    [
        [],
        [(0, 1e-3)] * 5,
        [(4096, 1e-3)] * 5,
        [(0, 2e-3), (4096, 1e-3), (16384, 1e-3)],
        [(0, 0.0), (4096, 0.0)],
    ],
)
def test_what_makes_no_line_is_no_fit(few: list[tuple[int, float]]) -> None:
    assert fit_cost(few) is None


def test_the_summary_of_round_trips() -> None:
    trips = summary([0.001 * number for number in range(1, 101)], sent=120)
    assert (trips.sent, trips.received) == (120, 100)
    assert trips.min_s == pytest.approx(0.001)
    assert trips.max_s == pytest.approx(0.1)
    assert trips.median_s == pytest.approx(0.0505)
    assert trips.mean_s == pytest.approx(0.0505)
    assert trips.p99_s == pytest.approx(0.099)
    assert summary([], sent=3).received == 0


def test_the_weighted_median() -> None:
    assert weighted_median([(1.0, 1.0), (2.0, 1.0), (9.0, 1.0)]) == 2.0
    assert weighted_median([(9.0, 5.0), (1.0, 1.0), (2.0, 1.0)]) == 9.0
    with pytest.raises(ValueError, match="no value"):
        weighted_median([])
