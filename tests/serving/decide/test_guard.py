"""Policies of a pool: broken ones, slow ones, one beside another."""

from collections.abc import Sequence

import pytest

from tests.serving.decide.loads import Fixed, answer, facts, model, pool_of
from trainmesh.errors import ConfigError
from trainmesh.serving.config.types import (
    LimitsConfig,
    ShadowConfig,
)
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
    Scorer,
)


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"model m: unknown policy 'nope'; one of: affinity, "):
        pool_of(model(2, "nope"))


def test_a_policy_that_fails_is_replaced_for_a_while_and_said_once() -> None:
    class Broken:
        name = "broken"

        def score(self, *_: object) -> Sequence[float]:
            raise ZeroDivisionError("0 / 0")

    scorers: dict[str, Scorer] = {**load_scorers()[0], "broken": Broken()}
    pool = pool_of(model(2, "broken"), scorers=scorers)
    for _ in range(5):
        assert pool.choose(facts(), 1.0).policy == "least_requests"
    lines = pool.tick(1.1)
    assert len(lines) == 1
    assert "policy broken failed: ZeroDivisionError: 0 / 0; least_requests for 10 s" in lines[0]


@pytest.mark.parametrize("scores", [[], [1.0], [float("nan")] * 2, [1.0] * 3])
def test_scores_that_make_no_sense_are_not_used(scores: list[float]) -> None:
    class Odd:
        name = "odd"

        def score(self, *_: object) -> Sequence[float]:
            return scores

    pool = pool_of(model(2, "odd"), scorers={**load_scorers()[0], "odd": Odd()})
    assert pool.choose(facts(), 1.0).policy == "least_requests"


def test_a_policy_over_its_time_is_replaced_after_three_times_in_a_row() -> None:
    times = iter(range(1000))
    pool = pool_of(model(2), clock=lambda: float(next(times)), limits=LimitsConfig(decision_s=0.5))
    used = [pool.choose(facts(), float(i)).policy for i in range(20)]
    assert used == ["hybrid"] * 3 + ["least_requests"] * 9 + ["hybrid"] * 3 + ["least_requests"] * 5
    assert "took 1e+03 ms, more than decision_s" in pool.tick(20.0)[0]


def test_a_shadow_only_says_what_it_would_have_done() -> None:
    scorers: dict[str, Scorer] = {**load_scorers()[0], "a": Fixed(0), "b": Fixed(1)}
    pool = pool_of(model(2, "a", shadow=ShadowConfig(policy="b")), scorers=scorers)
    for i in range(20):
        choice = pool.choose(facts(), 0.0)
        assert choice.endpoint is pool.endpoints[0]
        assert choice.shadow is pool.endpoints[1]
        answer(pool, pool.endpoints[0], i * 0.01)
        pool.begin(pool.endpoints[0], facts(), AttemptKind.FIRST, i * 0.01)
        pool.tick(i * 0.01)
    assert (pool.versus.compared, pool.versus.same) == (20, 0)
    assert pool.versus.win_rate > 0.9


def test_an_ab_test_compares_measured_ttfts() -> None:
    scorers: dict[str, Scorer] = {**load_scorers()[0], "a": Fixed(0), "b": Fixed(1)}
    pool = pool_of(model(2, "a", shadow=ShadowConfig(policy="b", share=0.3)), scorers=scorers)
    arms = [0, 0]
    for i in range(400):
        now_s = i * 0.1
        choice = pool.choose(facts(), now_s)
        assert choice.endpoint is pool.endpoints[choice.arm]
        attempt = pool.begin(choice.endpoint, facts(), AttemptKind.FIRST, now_s, choice.arm)
        pool.first_byte(attempt, now_s + (0.004 if choice.arm else 0.006))
        pool.end(attempt, AttemptOutcome.OK, now_s + 0.01)
        arms[choice.arm] += 1
    assert pool.versus.answered == arms
    assert 80 < arms[1] < 160
    assert pool.versus.win_rate == 1.0
