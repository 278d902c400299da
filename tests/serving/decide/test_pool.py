"""Pools without a simulation: accounts, filters, states, reloads, the ledger's records."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.decide.loads import answer, facts, model, pool_of, signal
from trainmesh.serving.config.types import (
    EndpointConfig,
    HedgeConfig,
    ModelConfig,
    RetryConfig,
)
from trainmesh.serving.decide.decision_record import decision_of
from trainmesh.serving.decide.endpoint import Attempt, Endpoint
from trainmesh.serving.decide.health import HealthState
from trainmesh.serving.decide.policies.scorers import BUILT_IN
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.decide.record import Decision, replay
from trainmesh.serving.decide.types import (
    AttemptKind,
    AttemptOutcome,
)

OUTCOMES = [*AttemptOutcome]
BAD = [AttemptOutcome.RESET, AttemptOutcome.STATUS, AttemptOutcome.TIMEOUT, AttemptOutcome.STREAM]


def state_of(endpoint: Endpoint) -> HealthState:
    """Asked anew each time, for a type checker too."""
    return endpoint.health.state


def fail(
    pool: Pool, endpoint: Endpoint, outcome: AttemptOutcome, now_s: float, **more: float
) -> None:
    pool.end(pool.begin(endpoint, facts(), AttemptKind.FIRST, now_s), outcome, now_s, **more)  # type: ignore[arg-type]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "first_byte", "end", "tick"]),
        st.integers(0, 10),
        st.sampled_from(OUTCOMES),
        st.floats(0, 2),
        st.booleans(),
    ),
    max_size=80,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(steps=STEPS, policy=st.sampled_from(sorted(BUILT_IN)))
def test_accounts_are_square_after_anything(
    steps: list[tuple[str, int, AttemptOutcome, float, bool]], policy: str
) -> None:
    pool = pool_of(model(3, policy))
    begun: list[Attempt] = []
    now_s = 0.0
    for do, number, outcome, passed_s, stream in steps:
        now_s += passed_s
        if do == "tick":
            pool.tick(now_s)
        elif do == "begin":
            asked = facts(
                number,
                stream=stream,
                prompt_tokens=number * 100,
                session=b"s" * (number % 3),
                blocks=tuple(range(number)),
            )
            chosen = pool.choose(asked, now_s).endpoint
            assert chosen is not None
            kind = AttemptKind.TRIAL if number == 10 else AttemptKind.FIRST
            begun.append(pool.begin(chosen, asked, kind, now_s))
        elif begun:
            attempt = begun[number % len(begun)]
            if do == "first_byte":
                pool.first_byte(attempt, now_s)
            else:
                pool.end(attempt, outcome, now_s, 10)
                pool.end(attempt, outcome, now_s, 10)
    for attempt in begun:
        pool.end(attempt, AttemptOutcome.CANCELLED, now_s)
    for endpoint in pool.endpoints:
        assert (endpoint.inflight, endpoint.own_inflight) == (0, 0)
        assert (endpoint.inflight_tokens, endpoint.own_tokens) == (0, 0)
        assert (endpoint.waiting_tokens, endpoint.own_waiting_tokens) == (0, 0)
        assert not endpoint.unanswered
        assert endpoint.health.trials_inflight == 0
    assert pool.inflight == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(sorted(BUILT_IN)),
    busy=st.lists(st.integers(0, 3), max_size=20),
    session=st.binary(max_size=3),
    tokens=st.integers(0, 100_000),
    seed=st.integers(0, 1000),
)
def test_a_record_replays_to_the_same_choice(
    policy: str, busy: list[int], session: bytes, tokens: int, seed: int
) -> None:
    pool = pool_of(model(4, policy), rng=random.Random(seed))
    for i, number in enumerate(busy):
        request = facts(i, prompt_tokens=100 * i, blocks=tuple(range(i)))
        attempt = pool.begin(pool.endpoints[number], request, AttemptKind.FIRST, i * 0.1)
        if i % 2:
            pool.first_byte(attempt, i * 0.1 + 0.01 * number)
    pool.tick(3.0)
    request = facts(prompt_tokens=tokens, session=session, blocks=tuple(range(8)), tenant="t")
    choice = pool.choose(request, 3.0)
    assert choice.endpoint is not None
    record = decision_of(choice, request, AttemptKind.FIRST, unix_s=1.5, snapshot=7)
    read = msgspec.json.decode(msgspec.json.encode(record), type=Decision)
    assert replay(read, BUILT_IN[policy]()) == choice.endpoint.index
    assert read.chosen == choice.endpoint.name
    assert read.names[[r.index for r in read.rows].index(choice.endpoint.index)] == read.chosen
    assert (read.unix_s, read.snapshot, read.tenant) == (1.5, 7, "t")


def test_without_a_ledger_the_same_is_chosen_and_no_row_is_made() -> None:
    written, unwritten = pool_of(model(4)), pool_of(model(4), keeps_rows=False)
    for n in range(50):
        kept, bare = (pool.choose(facts(n), 0.1 * n) for pool in (written, unwritten))
        assert kept.endpoint is not None
        assert bare.endpoint is not None
        assert (kept.endpoint.name, kept.scores) == (bare.endpoint.name, bare.scores)
        assert (len(kept.rows), len(bare.rows)) == (4, 0)


def test_nobody_to_choose_is_said_with_every_reason() -> None:
    pool = pool_of(model(3))
    pool.update(
        {**signal("e0", excluded="quarantined: ecc"), **signal("e1", excluded="cordoned")}, 0
    )
    choice = pool.choose(facts(), 0.0, tried=[pool.endpoints[2]])
    assert choice.endpoint is None
    assert choice.reason == "e0: quarantined: ecc; e1: cordoned; e2: tried already"
    record = decision_of(choice, facts(), AttemptKind.RETRY, unix_s=0.0)
    assert (record.chosen, replay(record, BUILT_IN["hybrid"]())) == ("", -1)
    assert record.excluded == {"e0": "quarantined: ecc", "e1": "cordoned"}


def test_only_allowed_and_untried_endpoints_with_room_are_candidates() -> None:
    endpoints = tuple(
        EndpointConfig(url=f"http://h:{i}", name=f"e{i}", max_inflight=1) for i in range(4)
    )
    pool = pool_of(ModelConfig(endpoints=endpoints))
    pool.begin(pool.endpoints[1], facts(), AttemptKind.FIRST, 0.0)
    for _ in range(20):
        choice = pool.choose(facts(), 0.0, tried=[pool.endpoints[0]], allowed=frozenset((0, 1, 3)))
        assert [r.index for r in choice.rows] == [3]
    none = pool.choose(facts(), 0.0, allowed=frozenset((1,)))
    assert none.endpoint is None
    assert none.reason == "e1: full, 1 requests in flight"
    assert pool.choose(facts(), 0.0, allowed=frozenset()).endpoint is None


def test_the_version_changes_exactly_when_exclusions_do() -> None:
    pool = pool_of(model(2))
    before = pool.version
    pool.update(signal("e0", rtt_s=0.1), 1.0)
    assert (pool.version, pool.exclusions()) == (before, {})
    pool.update(signal("e0", excluded="quarantined"), 2.0)
    assert (pool.version, pool.exclusions()) == (before + 1, {"e0": "quarantined"})
    pool.update(signal("e0", excluded="quarantined"), 3.0)
    assert pool.version == before + 1


@pytest.mark.parametrize("outcome", BAD)
def test_three_faults_in_a_row_eject_and_a_good_answer_between_forgives(
    outcome: AttemptOutcome,
) -> None:
    pool = pool_of(model(4))
    bad = pool.endpoints[0]
    for _ in range(2):
        fail(pool, bad, outcome, 1.0)
        fail(pool, bad, outcome, 1.0)
        answer(pool, bad, 1.0)
    assert pool.exclusions() == {}
    for _ in range(3):
        fail(pool, bad, outcome, 2.0)
    assert "3 faults in a row" in pool.exclusions()["e0"]
    assert pool.tick(2.1)[0].startswith("model m: e0: ejected for 1 s: 3 faults in a row")


def test_streams_that_all_break_off_eject_although_they_began_well() -> None:
    pool = pool_of(model(4))
    for i in range(3):
        attempt = pool.begin(pool.endpoints[0], facts(), AttemptKind.FIRST, float(i))
        pool.first_byte(attempt, i + 0.01)
        pool.end(attempt, AttemptOutcome.STREAM, i + 0.5)
    assert "answer broken off" in pool.exclusions()["e0"]


@pytest.mark.parametrize("outcome", [AttemptOutcome.CLIENT_ERROR, AttemptOutcome.CANCELLED])
def test_what_clients_do_is_no_fault_of_the_endpoint(outcome: AttemptOutcome) -> None:
    pool = pool_of(model(2))
    for i in range(50):
        fail(pool, pool.endpoints[0], outcome, 0.01 * i)
    pool.tick(1.0)
    assert pool.exclusions() == {}


def test_a_refused_connection_is_enough() -> None:
    pool = pool_of(model(2))
    fail(pool, pool.endpoints[0], AttemptOutcome.CONNECT, 1.0)
    assert pool.exclusions() == {"e0": "connection refused or timed out"}
    taken = {pool.choose(facts(), 1.0).endpoint for _ in range(20)}
    assert taken == {pool.endpoints[1]}


def test_backpressure_backs_off_for_as_long_as_asked_and_is_no_ejection() -> None:
    pool = pool_of(model(2))
    full = pool.endpoints[0]
    fail(pool, full, AttemptOutcome.BACKPRESSURE, 1.0, retry_after_s=3.0)
    assert full.health.state is HealthState.BACKOFF
    assert pool.exclusions()["e0"].startswith("backpressure")
    pool.tick(3.9)
    assert full not in {pool.choose(facts(), 3.9).endpoint for _ in range(20)}
    assert full in {pool.choose(facts(), 4.1).endpoint for _ in range(20)}
    pool.begin(full, facts(), AttemptKind.FIRST, 4.1)  # one at a time until it answers
    assert full not in {pool.choose(facts(), 4.1).endpoint for _ in range(20)}


def test_when_all_are_out_the_least_bad_is_asked() -> None:
    pool = pool_of(model(2))
    fail(pool, pool.endpoints[0], AttemptOutcome.CONNECT, 1.0)
    fail(pool, pool.endpoints[1], AttemptOutcome.BACKPRESSURE, 1.0)
    choice = pool.choose(facts(), 1.01)
    assert choice.endpoint is pool.endpoints[1]
    assert choice.reason.startswith("all others are out; backpressure")


def test_trials_come_once_a_second_and_one_good_one_is_enough() -> None:
    pool = pool_of(model(2))
    bad = pool.endpoints[0]
    assert pool.trial(facts(), 0.5) is None
    fail(pool, bad, AttemptOutcome.CONNECT, 1.0)
    assert pool.trial(facts(), 1.1) is None
    assert pool.trial(facts(), 2.0, allowed=frozenset((1,))) is None
    assert pool.trial(facts(), 2.0, sent_to=[bad]) is None
    assert pool.trial(facts(), 2.0) is bad
    fail_at = pool.begin(bad, facts(), AttemptKind.TRIAL, 2.0)
    assert pool.trial(facts(), 2.1) is None
    pool.end(fail_at, AttemptOutcome.CONNECT, 2.1)
    assert state_of(bad) is HealthState.EJECTED
    assert pool.trial(facts(), 3.2) is bad
    good = pool.begin(bad, facts(), AttemptKind.TRIAL, 3.2)
    pool.first_byte(good, 3.25)
    pool.end(good, AttemptOutcome.CANCELLED, 3.25)
    assert state_of(bad) is HealthState.SLOW_START
    assert pool.exclusions() == {}
    pool.tick(9.0)
    assert state_of(bad) is HealthState.HEALTHY


def test_without_traffic_time_ends_an_ejection_and_one_request_proves_it() -> None:
    pool = pool_of(model(2))
    bad = pool.endpoints[0]
    fail(pool, bad, AttemptOutcome.CONNECT, 1.0)
    pool.tick(2.6)
    assert bad.health.state is HealthState.SLOW_START
    pool.begin(bad, facts(), AttemptKind.FIRST, 2.6)
    assert bad not in {pool.choose(facts(), 2.6).endpoint for _ in range(50)}
    fail(pool, bad, AttemptOutcome.RESET, 2.7)
    assert "first time it was asked again" in pool.exclusions()["e0"]


def test_slow_start_lets_a_share_through_that_grows() -> None:
    pool = pool_of(model(2, "round_robin"))
    bad = pool.endpoints[0]
    fail(pool, bad, AttemptOutcome.CONNECT, 0.0)
    trial = pool.begin(bad, facts(), AttemptKind.TRIAL, 1.0)
    pool.first_byte(trial, 1.0)
    pool.end(trial, AttemptOutcome.CANCELLED, 1.0)
    shares = []
    for now_s in (1.1, 3.5, 5.9):
        taken = [pool.choose(facts(), now_s).endpoint for _ in range(600)]
        shares.append(taken.count(bad) / 600)
    assert 0.02 < shares[0] < 0.09 < 0.2 < shares[1] < 0.3 < 0.4 < shares[2] < 0.55


def test_late_faults_of_what_was_under_way_do_not_count_twice() -> None:
    pool = pool_of(model(2))
    bad = pool.endpoints[0]
    under_way = [pool.begin(bad, facts(), AttemptKind.FIRST, 0.5) for _ in range(9)]
    fail(pool, bad, AttemptOutcome.CONNECT, 1.0)
    until_s = bad.health.until_s
    for attempt in under_way:
        pool.end(attempt, AttemptOutcome.RESET, 1.2)
    assert bad.health.until_s == until_s


def test_retries_have_a_budget_and_a_floor() -> None:
    pool = pool_of(model(2, retry=RetryConfig(attempts=3, budget=0.2)))
    assert not pool.may_retry(facts(), 3, 0.0)
    granted = sum(pool.may_retry(facts(), 1, 0.0) for _ in range(500))
    assert granted == 50
    for _ in range(100):
        answer(pool, pool.endpoints[0], 0.0)
    assert sum(pool.may_retry(facts(), 1, 0.0) for _ in range(500)) in (19, 20)
    assert sum(pool.may_retry(facts(), 1, 2.0) for _ in range(500)) in (9, 10)
    none = pool_of(model(2, retry=RetryConfig(budget=0.0)))
    assert not none.may_retry(facts(), 1, 0.0)


def test_a_hedge_waits_for_the_quantile_of_its_own_kind() -> None:
    pool = pool_of(model(2, hedge=HedgeConfig(quantile=0.9, budget=0.5)))
    assert pool.hedge_delay_s(facts()) == float("inf")
    small, large = facts(prompt_tokens=50), facts(prompt_tokens=5000)
    for i in range(100):
        for request, ttft_s in ((small, 0.03 + i * 1e-4), (large, 0.3 + i * 1e-3)):
            attempt = pool.begin(pool.endpoints[i % 2], request, AttemptKind.FIRST, float(i))
            pool.first_byte(attempt, i + ttft_s)
            pool.end(attempt, AttemptOutcome.OK, i + 1.0)
    pool.tick(100.0)
    assert 0.039 <= pool.hedge_delay_s(small) < 0.039 * 1.15
    assert 0.39 <= pool.hedge_delay_s(large) < 0.39 * 1.15
    assert pool.hedge_delay_s(facts(stream=True)) == float("inf")
    pool.update(signal("e0", excluded="cordoned"), 100.0)
    assert pool.hedge_delay_s(small) == float("inf")  # nobody to hedge with


def test_a_busy_pool_is_not_hedged() -> None:
    endpoints = tuple(EndpointConfig(url=f"http://h:{i}", max_inflight=10) for i in range(2))
    pool = pool_of(ModelConfig(endpoints=endpoints))
    assert pool.may_hedge(facts(), 0.0)
    for _ in range(9):
        for endpoint in pool.endpoints:
            pool.begin(endpoint, facts(), AttemptKind.FIRST, 0.0)
    for i in range(1, 80):
        pool.tick(i * 0.1)
    assert not pool.may_hedge(facts(), 8.0)


def test_the_loser_of_a_hedge_teaches_what_it_took_at_least() -> None:
    pool = pool_of(model(2))
    slow, good = pool.endpoints
    for i in range(10):
        answer(pool, slow, i * 0.1)
        answer(pool, good, i * 0.1)
    before = slow.base_s + slow.s_per_token * 60
    loser = pool.begin(slow, facts(), AttemptKind.FIRST, 2.0)
    answer(pool, good, 2.02)
    pool.end(loser, AttemptOutcome.CANCELLED, 2.025)
    assert slow.base_s + slow.s_per_token * 60 > 1.2 * before


def test_a_reload_keeps_what_is_known_of_endpoints_with_the_same_url() -> None:
    pool = pool_of(model(3))
    kept, gone = pool.endpoints[1], pool.endpoints[0]
    fail(pool, kept, AttemptOutcome.CONNECT, 1.0)
    running = pool.begin(kept, facts(), AttemptKind.FIRST, 1.0)
    lost = pool.begin(gone, facts(), AttemptKind.FIRST, 1.0)
    bits = [e.bit for e in pool.endpoints]
    new = ModelConfig(
        endpoints=(
            EndpointConfig(url="http://127.0.0.1:9001", name="other name", weight=2.0),
            EndpointConfig(url="http://127.0.0.1:9050"),
        )
    )
    after = pool_of(new, previous=pool, now_s=1.1)
    assert after.endpoints[0] is kept
    assert (kept.index, kept.name, kept.weight, kept.inflight) == (0, "other name", 2.0, 1)
    assert after.exclusions() == {"other name": "connection refused or timed out"}
    assert after.version > pool.version
    assert after.endpoints[1].name == "127.0.0.1:9050"
    assert after.endpoints[1].bit not in bits
    after.end(running, AttemptOutcome.OK, 1.2)
    after.end(lost, AttemptOutcome.OK, 1.2)
    assert kept.inflight == 0


def test_standbys_come_when_nobody_else_can_and_go_when_it_is_quiet() -> None:
    endpoints = (
        EndpointConfig(url="http://h:1", name="a", max_inflight=4),
        EndpointConfig(url="http://h:2", name="spare", standby=True),
    )
    pool = pool_of(ModelConfig(endpoints=endpoints))
    assert pool.exclusions() == {"spare": "standby"}
    pool.update(signal("a", excluded="cordoned"), 1.0)
    assert "spare: standby is used: no other endpoint" in pool.tick(1.0)[0]
    assert pool.choose(facts(), 1.0).endpoint is pool.endpoints[1]
    pool.update(signal("a"), 2.0)
    lines = [line for i in range(700) for line in pool.tick(2.0 + i * 0.1)]
    assert lines == ["model m: spare: standby again: it is quiet"]


def test_standbys_come_after_some_seconds_of_high_load() -> None:
    endpoints = (
        EndpointConfig(url="http://h:1", name="a", max_inflight=4),
        EndpointConfig(url="http://h:2", name="spare", standby=True),
    )
    pool = pool_of(ModelConfig(endpoints=endpoints))
    for _ in range(4):
        pool.begin(pool.endpoints[0], facts(), AttemptKind.FIRST, 0.0)
    promoted = [
        i * 0.1 for i in range(1, 100) if any("standby is" in s for s in pool.tick(i * 0.1))
    ]
    assert len(promoted) == 1
    assert 2.0 < promoted[0] < 6.0


def test_capacity_counts_others_and_saturated_engines() -> None:
    endpoints = tuple(
        EndpointConfig(url=f"http://h:{i}", name=f"e{i}", max_inflight=10) for i in range(3)
    )
    pool = pool_of(ModelConfig(endpoints=endpoints))
    assert pool.capacity() == 30
    pool.endpoints[0].set_others(4, 100, 50)
    pool.update(signal("e1", others_inflight=3), 1.0)
    assert pool.capacity() == 6 + 7 + 10
    assert pool.endpoints[0].inflight == 4
    pool.begin(pool.endpoints[2], facts(), AttemptKind.FIRST, 1.0)
    pool.update(signal("e2", kv_use=0.97, reported_at_s=1.0), 1.5)
    assert pool.capacity() == 6 + 7 + 1
    pool.tick(10.0)  # such an old report says nothing
    assert pool.capacity() == 6 + 7 + 10


def test_of_many_endpoints_some_are_scored_and_in_time_all_are_used() -> None:
    pool = pool_of(model(200))
    used = set()
    for i in range(3000):
        choice = pool.choose(facts(i), 0.0)
        assert len({r.index for r in choice.rows}) == len(choice.rows) == 16
        assert choice.endpoint is not None
        used.add(choice.endpoint.index)
    assert len(used) == 200


def test_of_many_endpoints_a_session_finds_its_own() -> None:
    pool = pool_of(model(200))
    sessions = [facts(session=b"%d" % number) for number in range(100)]
    homes = [{pool.choose(request, 0.0).endpoint for _ in range(5)} for request in sessions]
    assert all(len(home) == 1 for home in homes)
    pool.update(signal("e7", excluded="cordoned"), 0.0)
    after = [{pool.choose(request, 0.0).endpoint} for request in sessions]
    assert sum(one != other for one, other in zip(homes, after, strict=True)) < 15


def test_of_many_endpoints_a_prompt_finds_its_prefix() -> None:
    pool = pool_of(model(200))
    prompt = facts(prompt_tokens=1000, blocks=tuple(range(8)))
    holder = pool.endpoints[77]
    pool.end(pool.begin(holder, prompt, AttemptKind.FIRST, 0.0), AttemptOutcome.OK, 0.01)
    for _ in range(20):
        rows = pool.choose(prompt, 0.0).rows
        assert [r.index for r in rows if r.cached_tokens] == [77]


def test_one_that_is_let_in_by_time_and_still_slow_is_out_again() -> None:
    pool = pool_of(model(4))
    slow, *others = pool.endpoints
    lines = []
    for i in range(400):
        for endpoint in others:
            answer(pool, endpoint, i * 0.05)
        if slow.health.state is not HealthState.EJECTED:
            answer(pool, slow, i * 0.05, 0.3)
        lines += pool.tick(i * 0.05)
    assert len([line for line in lines if "times the others'" in line]) > 1
    assert len([line for line in lines if "the ejection's time is over" in line]) > 1
