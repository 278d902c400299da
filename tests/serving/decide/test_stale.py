"""Endpoints that take requests and get none."""

import random

from trainmesh.serving.config.types import EndpointConfig, LimitsConfig, ModelConfig
from trainmesh.serving.decide.policies.scorers import load_scorers
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.types import AttemptKind, AttemptOutcome, RequestFacts


def test_one_that_nobody_chooses_is_tried_by_copies_until_it_is_chosen() -> None:
    """A cold first answer must not starve an endpoint for ever: one client, one at a time."""
    pool = Pool(
        "m",
        ModelConfig(endpoints=tuple(EndpointConfig(url=f"http://h:{n}") for n in (1, 2, 3))),
        limits=LimitsConfig(),
        scorers=load_scorers()[0],
        rng=random.Random(1),
        now_s=0.0,
    )
    now_s, chosen, copies = 0.0, [0, 0, 0], 0
    first = [True, True, True]
    for number in range(4000):
        facts = RequestFacts(request_id=str(number), model="m", prompt_tokens=50, output_tokens=4)
        endpoint = pool.choose(facts, now_s).endpoint
        assert endpoint is not None
        trial = pool.trial(facts, now_s)
        attempts = [pool.begin(endpoint, facts, AttemptKind.FIRST, now_s)]
        if trial is not None:
            copies += 1
            attempts.append(pool.begin(trial, facts, AttemptKind.TRIAL, now_s))
        cold = endpoint.index == 2 and first[2]
        first[endpoint.index] = False
        now_s += 0.030 if cold else 0.0015
        for attempt in attempts:
            pool.first_byte(attempt, now_s)
            pool.end(attempt, AttemptOutcome.OK, now_s)
        if number >= 3000:
            chosen[endpoint.index] += 1
        if number % 50 == 0:
            pool.tick(now_s)
    assert min(chosen) > 200, chosen
    assert copies <= now_s / 1.0 + 1
