"""What endpoints of several models at one URL know of each other."""

import random

from trainmesh.serving.config.types import EndpointConfig, LimitsConfig, ModelConfig
from trainmesh.serving.decide.endpoint import Endpoint
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.policies.scorers import BUILT_IN
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome, RequestFacts

FACTS = RequestFacts(request_id="1", model="m", prompt_tokens=100, output_tokens=10)
LOAD = (1, 110, 100)


def pool(*urls: str, previous: Pool | None = None) -> Pool:
    endpoints = tuple(EndpointConfig(url=url, max_inflight=4) for url in urls)
    return Pool(
        "m", ModelConfig(endpoints=endpoints, policy="least_requests"), limits=LimitsConfig(),
        scorers={name: made() for name, made in BUILT_IN.items()}, rng=random.Random(1), now_s=0.0,
        previous=previous,
    )  # fmt: skip


def load(endpoint: Endpoint) -> tuple[int, int, int]:
    return endpoint.inflight, endpoint.inflight_tokens, endpoint.waiting_tokens


def test_what_is_in_flight_is_seen_at_once_and_by_nobody_else() -> None:
    a, b, c = pool("http://h:1", "http://h:2"), pool("http://h:1/v1/"), pool("https://h:1")
    Pool.share([a, b, c])
    assert (a.shares, b.shares, c.shares) == (True, True, False)
    attempt = a.begin(a.endpoints[0], FACTS, AttemptKind.FIRST, 1.0)
    assert load(a.endpoints[0]) == load(b.endpoints[0]) == LOAD
    assert load(c.endpoints[0]) == load(a.endpoints[1]) == (0, 0, 0)
    assert (a.inflight, b.inflight) == (1, 0), "whose request it is stays known"
    assert (a.capacity(), b.capacity()) == (8, 3)
    b.endpoints[0].set_others(2, 0)
    assert load(b.endpoints[0])[0] == 3
    a.first_byte(attempt, 1.1)
    assert load(b.endpoints[0]) == (3, 110, 0)
    a.end(attempt, AttemptOutcome.OK, 1.2)
    assert load(b.endpoints[0]) == (2, 0, 0)


def test_a_reload_in_the_middle_leaves_no_remainder() -> None:
    a, b = pool("http://h:1"), pool("http://h:1")
    Pool.share([a, b])
    attempt = a.begin(a.endpoints[0], FACTS, AttemptKind.FIRST, 1.0)
    moved, kept = pool("http://h:3", previous=a), pool("http://h:1", previous=b)
    Pool.share([moved, kept], [a, b])
    assert load(kept.endpoints[0]) == (0, 0, 0)
    moved.end(attempt, AttemptOutcome.OK, 2.0)
    assert load(kept.endpoints[0]) == (0, 0, 0)
    again = pool("http://h:1")
    Pool.share([again, kept], [moved, kept])
    again.begin(again.endpoints[0], FACTS, AttemptKind.FIRST, 3.0)
    assert load(kept.endpoints[0]) == LOAD


def test_faults_of_the_server_are_shared_and_those_of_a_model_are_not() -> None:
    for outcome, state in (
        (AttemptOutcome.CONNECT, HealthState.EJECTED),
        (AttemptOutcome.BACKPRESSURE, HealthState.BACKOFF),
        (AttemptOutcome.STATUS, HealthState.HEALTHY),
        (AttemptOutcome.LONE_ERROR, HealthState.HEALTHY),
    ):
        a, b = pool("http://h:1", "http://h:2"), pool("http://h:1", "http://h:2")
        Pool.share([a, b])
        for second in range(3):
            attempt = a.begin(a.endpoints[0], FACTS, AttemptKind.FIRST, 1.0 + second / 100)
            a.end(attempt, outcome, 1.001 + second / 100)
        assert a.endpoints[0].health.state is not HealthState.HEALTHY
        assert b.endpoints[0].health.state is state, outcome
        assert b.endpoints[1].health.state is HealthState.HEALTHY


def test_a_full_server_is_told_from_one_that_is_out() -> None:
    a, b = pool("http://h:1"), pool("http://h:1")
    Pool.share([a, b])
    attempts = [a.begin(a.endpoints[0], FACTS, AttemptKind.FIRST, 1.0) for _ in range(4)]
    choice = b.choose(FACTS, 1.1)
    assert (choice.endpoint, choice.full) == (None, True)
    assert not b.choose(FACTS, 1.1, allowed=frozenset()).full
    a.end(attempts[0], AttemptOutcome.OK, 1.2)
    assert b.choose(FACTS, 1.3).endpoint is b.endpoints[0]
