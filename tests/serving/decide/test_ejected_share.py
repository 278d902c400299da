"""How much of a pool may be out, as docs/serving.md and docs/serve_config.md say."""

import pytest

from tests.serving.decide.loads import facts, model, pool_of
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome


def after(outcome: AttemptOutcome, n: int) -> Pool:
    """A pool of ``n`` endpoints, each of which has failed so five times."""
    pool = pool_of(model(n))
    for number in range(5):
        for endpoint in pool.endpoints:
            attempt = pool.begin(endpoint, facts(number), AttemptKind.FIRST, 1.0)
            pool.end(attempt, outcome, 1.0)
    return pool


def out(pool: Pool) -> int:
    return sum(endpoint.health.state is HealthState.EJECTED for endpoint in pool.endpoints)


@pytest.mark.parametrize(("n", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (8, 4)])
def test_for_errors_at_most_half_and_never_the_last(n: int, most: int) -> None:
    for outcome in (AttemptOutcome.STATUS, AttemptOutcome.TIMEOUT, AttemptOutcome.LONE_ERROR):
        assert out(after(outcome, n)) == most


@pytest.mark.parametrize("n", [1, 4])
def test_who_refuses_connections_is_out_in_any_case_and_still_asked_if_all_are(n: int) -> None:
    pool = after(AttemptOutcome.CONNECT, n)
    assert out(pool) == n
    choice = pool.choose(facts(), 1.1)
    assert choice.endpoint is not None
    assert choice.reason.startswith("all others are out")
