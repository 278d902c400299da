"""Estimates, histograms, budgets, the prefix index: the parts that a pool is made of."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.serving.config.types import EjectConfig, EndpointConfig
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.learn.estimate import Shape, Speed, nominal_s
from trainmesh.serving.decide.learn.forecast import Forecast
from trainmesh.serving.decide.learn.histogram import Histogram
from trainmesh.serving.decide.learn.prefix import PrefixIndex
from trainmesh.serving.decide.learn.prefix_cache_model import PrefixCacheModel
from trainmesh.serving.decide.retries.budget import Budget
from trainmesh.serving.decide.types import EndpointSignal


def endpoints(n: int) -> list[Endpoint]:
    return [
        Endpoint(i, EndpointConfig(url=f"http://h:{i}"), EjectConfig(), 1 << i) for i in range(n)
    ]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(base_s=st.floats(1e-4, 1.0), s_per_token=st.floats(1e-6, 1e-3), seed=st.integers(0, 99))
def test_a_shape_finds_the_line(base_s: float, s_per_token: float, seed: int) -> None:
    rng = random.Random(seed)
    shape = Shape()
    for i in range(300):
        work = rng.uniform(100, 10_000)
        shape.add(work, base_s + s_per_token * work, i * 0.01)
    grows = s_per_token * 5000 / (base_s + s_per_token * 5000)
    if grows > 0.3:  # below, more is put down to work than there is: see MIN_SLOPE
        assert shape.predict_s(8000) == pytest.approx(base_s + s_per_token * 8000, rel=0.03)
    assert shape.predict_s(5000) == pytest.approx(base_s + s_per_token * 5000, rel=0.1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    samples=st.lists(
        st.tuples(st.floats(1, 1e9), st.floats(1e-6, 1e5), st.floats(0, 1e5)), min_size=1
    )
)
def test_predictions_are_positive_and_grow_with_work(
    samples: list[tuple[float, float, float]],
) -> None:
    shape = Shape()
    now_s = 0.0
    for work, ttft_s, passed_s in samples:
        now_s += passed_s
        shape.add(work, ttft_s, now_s)
        assert shape.base_s >= 0
        assert 0 < shape.predict_s(1) < shape.predict_s(1000) < float("inf")


def test_constant_work_makes_latency_times_requests() -> None:
    shape = Shape()
    for i in range(100):
        shape.add(100, 0.005, i * 0.01)
    assert shape.predict_s(400) == pytest.approx(0.02)


def test_a_speed_is_found_within_few_samples_and_the_old_one_forgotten() -> None:
    speed = Speed()
    for i in range(1000):
        speed.add(0.005, 0.005, i * 0.001)
    assert speed.value == pytest.approx(1.0)
    for i in range(10):
        speed.add(0.3, 0.005, 1 + i * 0.001)
    assert speed.value > 10
    for i in range(3):
        speed.add(0.005, 0.005, 60.0 + i)
    assert speed.value < 5


def test_the_network_and_the_derate_are_no_part_of_an_estimate() -> None:
    signal = EndpointSignal(name="e", rtt_s=0.03, bandwidth_bytes_per_s=1e6, derate=0.5)
    assert nominal_s(0.1, 20_000, signal) == pytest.approx((0.1 - 0.03 - 0.02) * 0.5)
    assert nominal_s(0.02, 20_000, signal) == pytest.approx(0.002 * 0.5)  # a probe was wrong


def test_a_stale_speed_returns_to_the_habit_soon_and_to_the_pool_slowly() -> None:
    forecast = Forecast()
    one, two, three = endpoints(3)
    now_s = 0.0
    for i in range(300):
        now_s = i * 0.1
        for endpoint, factor in ((one, 1), (two, 1), (three, 4)):
            forecast.add(endpoint, False, 100.0, 0.01 * factor, now_s)
        forecast.refresh([one, two, three], now_s)

    def expected_s(endpoint: Endpoint) -> float:
        base_s, s_per_token = endpoint.models[0]
        return base_s + s_per_token * 100

    usual_s = expected_s(one)
    assert 3.5 < expected_s(three) / usual_s < 4.5
    for _ in range(20):
        forecast.add(one, False, 100.0, 0.5, now_s)  # a bad moment
    forecast.refresh([one, two, three], now_s)
    assert expected_s(one) > 10 * usual_s
    for _ in range(60):  # asked no more
        now_s += 0.1
        forecast.add(two, False, 100.0, 0.01, now_s)
        forecast.refresh([one, two, three], now_s)
    assert expected_s(one) < 4 * expected_s(two)
    assert expected_s(three) > 2 * expected_s(two)  # it was always slower
    for _ in range(600):
        now_s += 0.1
        forecast.add(two, False, 100.0, 0.01, now_s)
        forecast.refresh([one, two, three], now_s)
    assert expected_s(three) < 1.2 * expected_s(two)  # but is asked again


def test_kinds_are_learned_apart_but_a_slow_endpoint_is_slow_in_both() -> None:
    forecast = Forecast()
    pool = endpoints(3)
    for i in range(50):
        for endpoint in pool:
            factor = 5 if endpoint.index == 2 else 1
            forecast.add(endpoint, True, 100.0, 0.01 * factor, i * 0.01)
            if endpoint.index == 0:
                forecast.add(endpoint, False, 100.0, 1.0, i * 0.01)
    forecast.refresh(pool, 0.5)
    assert forecast.models[0].s_per_token > 20 * forecast.models[1].s_per_token
    assert pool[2].models[0][1] > 3 * pool[1].models[0][1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(1e-4, 1000), min_size=1, max_size=200),
    share=st.floats(0.01, 0.99),
)
def test_a_quantile_is_right_within_a_bucket(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    exact = ordered[max(0, -int(-share * len(values) // 1) - 1)]
    assert exact * 0.999 <= histogram.quantile_s(share) <= exact * 1.15


def test_a_histogram_forgets() -> None:
    histogram = Histogram()
    assert histogram.quantile_s(0.5) == 0.0
    for _ in range(100):
        histogram.add(10.0)
    for _ in range(100):
        histogram.forget(0.9)
    for _ in range(100):
        histogram.add(0.01)
    assert histogram.quantile_s(0.95) < 0.012


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    share=st.floats(0.01, 1),
    events=st.lists(st.tuples(st.booleans(), st.floats(0, 5), st.floats(0, 1)), max_size=200),
)
def test_a_budget_never_grants_more_than_it_gained(
    share: float, events: list[tuple[bool, float, float]]
) -> None:
    budget = Budget(share, floor_per_s=2.0, burst=10.0, now_s=0.0)
    now_s = gained = taken = 0.0
    for gain, units, passed_s in events:
        now_s += passed_s
        if gain:
            budget.gain(units)
            gained += share * units
        elif budget.take(units, now_s):
            taken += units
        assert taken <= 10.0 + gained + 2.0 * now_s + 1e-6


def chains() -> st.SearchStrategy[list[tuple[int, list[int]]]]:
    """(endpoint, chain of block hashes): chains that share heads, as prompts do."""
    return st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=6)),
        max_size=30,
    ).map(lambda sent: [(e, _chained(path)) for e, path in sent])


def _chained(path: list[int]) -> list[int]:
    blocks = []
    value = 1
    for bit in path:
        value = value * 2 + bit
        blocks.append(value)
    return blocks


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sent=chains(), asked=st.lists(st.integers(0, 1), min_size=1, max_size=6).map(_chained))
def test_the_index_knows_the_longest_prefix_of_each(
    sent: list[tuple[int, list[int]]], asked: list[int]
) -> None:
    index = PrefixIndex()
    bits = [index.new_bit() for _ in range(4)]
    for endpoint, blocks in sent:
        index.add(blocks, bits[endpoint])
    found = index.find(asked)
    for endpoint, bit in enumerate(bits):
        longest = 0
        for other, blocks in sent:
            if other == endpoint:
                same = 0
                while same < min(len(blocks), len(asked)) and blocks[same] == asked[same]:
                    same += 1
                longest = max(longest, same)
        assert sum(depth for mask, depth in found if mask & bit) == longest


def test_the_index_is_bounded_and_drops_ends_before_heads() -> None:
    index = PrefixIndex(max_blocks=10)
    bit = index.new_bit()
    index.add(range(8), bit)
    index.add(range(100, 106), bit)
    assert len(index) == 10
    assert index.find(range(8)) == [(bit, 4)]
    assert index.find(range(100, 106)) == [(bit, 6)]


def test_what_a_server_had_is_forgotten_when_it_goes_however_often() -> None:
    prefix_cache = PrefixCacheModel()
    pool = endpoints(3)
    for endpoint in pool:
        endpoint.bit = prefix_cache.new_bit()
    for _ in range(2000):
        old = pool[0].bit
        prefix_cache.forget(pool[0], pool)
        assert pool[0].bit != old
    assert len({e.bit for e in pool}) == 3
    assert all(e.bit.bit_length() < 600 for e in pool)
