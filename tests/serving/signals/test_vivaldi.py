"""Coordinates on synthetic networks: seeds are fixed, so the errors are figures, not chances."""

import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmesh.serving.cluster.vivaldi import (
    MIN_HEIGHT_S,
    Coordinate,
    Space,
    distance_s,
    moved,
)


def network(count: int, seed: int) -> dict[tuple[int, int], float]:
    """Round trips between nodes on a plane 60 ms wide, each behind an access link of its own."""
    rng = random.Random(seed)
    places = [(rng.uniform(0, 0.06), rng.uniform(0, 0.06)) for _ in range(count)]
    access = [rng.uniform(0.0005, 0.005) for _ in range(count)]
    return {
        (a, b): math.dist(places[a], places[b]) + access[a] + access[b]
        for a in range(count)
        for b in range(count)
        if a != b
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_round_trips_that_were_never_measured(seed: int) -> None:
    """Routers measure all endpoints but a quarter of the pairs, with 10 % of noise."""
    routers, endpoints = 6, 30
    rtts = network(routers + endpoints, seed)
    rng = random.Random(seed)
    pairs = [(r, e) for r in range(routers) for e in range(routers, routers + endpoints)]
    hidden = set(rng.sample(pairs, len(pairs) // 4))
    space = Space(random.Random(seed))
    for _ in range(100):
        for r, e in pairs:
            if (r, e) not in hidden:
                space.observe(f"n{r}", f"n{e}", rtts[r, e] * rng.uniform(1.0, 1.1))
    errors = [abs(space.estimate_s(f"n{r}", f"n{e}") - rtts[r, e]) / rtts[r, e] for r, e in hidden]
    assert median(errors) < 0.2
    guess_s = median(rtts[pair] for pair in pairs if pair not in hidden)
    assert median(errors) < median(abs(guess_s - rtts[p]) / rtts[p] for p in hidden) / 2


def test_two_nodes_come_to_their_distance() -> None:
    rng = random.Random(1)
    a, b = Coordinate(), Coordinate()
    for _ in range(200):
        a, b = moved(a, b, 0.03, rng), moved(b, a, 0.03, rng)
    assert distance_s(a, b) == pytest.approx(0.03, rel=0.01)
    assert a.error < 0.05


def test_nothing_is_said_of_nodes_that_are_hardly_known() -> None:
    space = Space(random.Random(1))
    assert space.estimate_s("a", "b") == 0.0
    space.observe("a", "b", 0.01)
    assert space.estimate_s("a", "b") == 0.0  # its error is still large
    for _ in range(100):
        space.observe("a", "b", 0.01)
    assert space.estimate_s("a", "b") == pytest.approx(0.01, rel=0.1)
    space.keep(["a"])
    assert space.estimate_s("a", "b") == 0.0


def test_what_can_not_be_a_round_trip_is_left_out_and_the_space_is_bounded() -> None:
    space = Space(random.Random(1), max_nodes=2)
    for rtt_s in (0.0, -1.0, math.nan, math.inf):
        space.observe("a", "b", rtt_s)
        with pytest.raises(ValueError, match="must be positive"):
            moved(Coordinate(), Coordinate(), rtt_s, random.Random(1))
    space.observe("a", "a", 0.01)
    for _ in range(100):
        space.observe("a", "b", 0.01)
        space.observe("a", "c", 0.01)
    assert space.estimate_s("a", "b") > 0
    assert space.estimate_s("a", "c") == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(1e-6, 10)), max_size=60))
@settings(derandomize=True, max_examples=100)
def test_coordinates_stay_finite(samples: list[tuple[int, int, float]]) -> None:
    known = [Coordinate() for _ in range(5)]
    rng = random.Random(0)
    for a, b, rtt_s in samples:
        known[a] = moved(known[a], known[b], rtt_s, rng)
        assert all(math.isfinite(x) for x in known[a].vector)
        assert MIN_HEIGHT_S <= known[a].height_s < math.inf
        assert 0 <= known[a].error <= 1.5
