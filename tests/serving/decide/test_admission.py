"""Who is let in, who waits, who is refused; in what order and with what words."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.decide.loads import facts, pool_of, signal
from trainmesh.serving.config.types import (
    Config,
    EndpointConfig,
    LimitsConfig,
    ModelConfig,
    TenantConfig,
)
from trainmesh.serving.decide.admission.admission import (
    Admission,
    Admitted,
    Queued,
    Ticket,
)
from trainmesh.serving.decide.pool import Pool
from trainmesh.serving.refusal import Refusal


def authenticator(
    *, room: int = 2, limits: LimitsConfig | None = None, **tenants: TenantConfig
) -> tuple[Admission, Pool]:
    """An admission for a model with one endpoint that holds ``room`` requests."""
    model = ModelConfig(endpoints=(EndpointConfig(url="http://h:1", name="e0", max_inflight=room),))
    config = Config(
        version=1, models={"m": model}, tenants=tenants, limits=limits or LimitsConfig()
    )
    pool = pool_of(model)
    return Admission(config, {"m": pool}, now_s=0.0), pool


def ticket(number: int, tenant: str = "", priority: int = 5, tokens: int = 60) -> Ticket:
    request = facts(number, tenant=tenant, priority=priority, prompt_tokens=tokens, output_tokens=0)
    return Ticket(request, owner=number)


def owners(tickets: list[Ticket]) -> list[int]:
    return [t.owner for t in tickets]


def test_requests_are_let_in_while_there_is_room_and_wait_then() -> None:
    admission, _ = authenticator(room=2)
    assert isinstance(admission.offer(ticket(1), 0.0), Admitted)
    assert isinstance(admission.offer(ticket(2), 0.0), Admitted)
    assert isinstance(admission.offer(ticket(3), 0.0), Queued)
    assert isinstance(admission.offer(ticket(4), 0.0), Queued)
    assert admission.waiting("m") == 2
    assert owners(admission.release(1, 1.0)) == [3]
    assert owners(admission.release(2, 1.0)) == [4]
    assert admission.release(2, 1.0) == []
    assert admission.release("nobody", 1.0) == []


def test_better_priorities_go_first() -> None:
    admission, _ = authenticator(room=1)
    admission.offer(ticket(0), 0.0)
    for number, priority in enumerate((9, 5, 0, 5), start=1):
        admission.offer(ticket(number, f"t{number}", priority), 0.0)
    order = []
    owner = 0
    while started := owners(admission.release(owner, 1.0)):
        order += started
        owner = started[0]
    assert order == [3, 2, 4, 1]


def test_tenants_share_tokens_by_weight_whatever_they_send() -> None:
    admission, _ = authenticator(room=1, small=TenantConfig(), large=TenantConfig(weight=3.0))
    admission.offer(ticket(0), 0.0)
    for number in range(1, 101):
        admission.offer(ticket(number, "small", tokens=100), 0.0)
    for number in range(101, 301):
        admission.offer(ticket(number, "large", tokens=200), 0.0)
    order = []
    owner = 0
    for _ in range(100):
        started = owners(admission.release(owner, 1.0))
        order += started
        owner = started[0]
    count = Counter("large" if number > 100 else "small" for number in order)
    tokens = {"large": 200 * count["large"], "small": 100 * count["small"]}
    assert 2.8 < tokens["large"] / tokens["small"] < 3.2


def test_one_that_was_idle_has_no_credit() -> None:
    admission, _ = authenticator(room=1)
    admission.offer(ticket(0, "a"), 0.0)
    for number in range(1, 20):
        admission.offer(ticket(number, "a"), 0.0)
    owner = 0
    for _ in range(9):
        owner = owners(admission.release(owner, 1.0))[0]
    for number in range(101, 110):
        admission.offer(ticket(number, "b"), 1.0)
    order = []
    for _ in range(8):
        owner = owners(admission.release(owner, 2.0))[0]
        order.append("b" if owner > 100 else "a")
    assert 3 <= order.count("b") <= 5


def test_it_waits_no_longer_than_it_may() -> None:
    admission, _ = authenticator(room=1, limits=LimitsConfig(queue_timeout_s=3.0))
    admission.offer(ticket(1), 0.0)
    admission.offer(ticket(2), 1.0)
    assert admission.expire(3.9) == []
    ((late, refused),) = admission.expire(4.1)
    assert late.owner == 2
    assert refused == Refusal(
        429, "no endpoint was free for 3 s", code="overloaded", retry_after_s=1
    )
    assert admission.release(2, 5.0) == []
    assert admission.waiting("m") == 0


def test_it_is_refused_at_once_where_the_wait_would_be_too_long() -> None:
    admission, _ = authenticator(room=1, limits=LimitsConfig(queue_timeout_s=2.0))
    admission.offer(ticket(0), 0.0)
    for number in range(1, 21):  # two a second
        admission.offer(ticket(number), number * 0.5)
        admission.release(number - 1, number * 0.5)
    waits = [admission.offer(ticket(100 + number), 10.0) for number in range(8)]
    assert [isinstance(verdict, Queued) for verdict in waits] == [True] * 4 + [False] * 4
    refused = waits[-1]
    assert isinstance(refused, Refusal)
    assert refused.status == 429
    assert refused.message == "all endpoints are busy; it would wait 2 s"
    assert refused.retry_after_s is not None
    assert refused.retry_after_s >= 1


def test_a_full_queue_pushes_out_the_worst_not_the_newest() -> None:
    limits = LimitsConfig(queue=4)
    admission, _ = authenticator(room=1, limits=limits)
    admission.offer(ticket(0), 0.0)
    for number in range(1, 5):
        assert isinstance(admission.offer(ticket(number, "flood"), 0.0), Queued)
    assert isinstance(admission.offer(ticket(5, "flood"), 0.0), Refusal)
    assert isinstance(admission.offer(ticket(6, "other"), 0.0), Queued)
    assert isinstance(admission.offer(ticket(7, "urgent", priority=1), 0.0), Queued)
    assert isinstance(admission.offer(ticket(8, "idle", priority=9), 0.0), Refusal)
    pushed = admission.expire(0.0)
    assert [t.owner for t, _ in pushed] == [4, 3]
    assert all(refused.status == 429 for _, refused in pushed)
    assert admission.waiting("m") == 4


@pytest.mark.parametrize(
    ("limit", "tokens", "granted", "retry_after_s"),
    [
        (TenantConfig(requests_per_s=2.0, burst_s=5.0), 10, 10, 1),
        (TenantConfig(tokens_per_s=100.0, burst_s=2.0), 50, 4, 1),
        (TenantConfig(tokens_per_s=10.0, burst_s=10.0), 50, 2, 5),
    ],
)
def test_rates_of_a_tenant(
    limit: TenantConfig, tokens: int, granted: int, retry_after_s: int
) -> None:
    admission, _ = authenticator(room=1000, t=limit)
    verdicts = [admission.offer(ticket(i, "t", tokens=tokens), 0.0) for i in range(20)]
    assert sum(isinstance(v, Admitted) for v in verdicts) == granted
    assert verdicts[-1] == Refusal(
        429, "tenant t: more than its rate allows", code="overloaded", retry_after_s=retry_after_s
    )
    assert isinstance(admission.offer(ticket(99, "t", tokens=tokens), retry_after_s), Admitted)
    assert isinstance(admission.offer(ticket(98, "another", tokens=tokens), 0.0), Admitted)


def test_a_prompt_beyond_the_burst_passes_and_owes_the_rest() -> None:
    admission, _ = authenticator(room=9, t=TenantConfig(tokens_per_s=10.0, burst_s=1.0))
    assert isinstance(admission.offer(ticket(1, "t", tokens=100), 0.0), Admitted)
    refused = admission.offer(ticket(2, "t", tokens=1), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.retry_after_s == 10


def test_tokens_that_were_not_used_come_back() -> None:
    admission, _ = authenticator(room=9, t=TenantConfig(tokens_per_s=10.0, burst_s=10.0))
    request = facts(tenant="t", prompt_tokens=20, output_tokens=80)
    assert isinstance(admission.offer(Ticket(request, 1), 0.0), Admitted)
    assert isinstance(admission.offer(ticket(2, "t", tokens=20), 0.0), Refusal)
    admission.release(1, 0.0, output_tokens=50)
    assert isinstance(admission.offer(ticket(3, "t", tokens=20), 0.0), Admitted)


def test_what_other_workers_let_in_counts() -> None:
    tenant = TenantConfig(requests_per_s=1.0, burst_s=10.0, max_inflight=4)
    admission, _ = authenticator(room=99, t=tenant)
    admission.hear_others("t", 1000, 0)  # what was before this worker is nobody's debt
    admission.hear_others("t", 1007, 0, inflight=2)
    admission.hear_others("not listed", 5, 5)
    verdicts = [admission.offer(ticket(i, "t"), 0.0) for i in range(4)]
    assert [type(v) for v in verdicts] == [Admitted, Admitted, Queued, Refusal]


def test_a_tenant_at_its_limit_waits_while_others_pass() -> None:
    admission, _ = authenticator(room=10, a=TenantConfig(max_inflight=1))
    admission.offer(ticket(1, "a"), 0.0)
    assert isinstance(admission.offer(ticket(2, "a"), 0.0), Queued)
    assert isinstance(admission.offer(ticket(3, "b"), 0.0), Admitted)
    assert admission.release(3, 0.1) == []
    assert owners(admission.release(1, 0.2)) == [2]


def test_a_client_that_goes_while_it_waits_is_forgotten() -> None:
    admission, _ = authenticator(room=1)
    tickets = [ticket(i) for i in range(4)]
    for one in tickets:
        admission.offer(one, 0.0)
    assert admission.withdraw(tickets[1], 0.0) == []
    assert owners(admission.release(0, 0.1)) == [2]


def test_more_room_lets_more_in() -> None:
    admission, pool = authenticator(room=3)
    pool.update(signal("e0", others_inflight=3), 0.0)
    assert admission.ready(0.0) == []
    assert isinstance(admission.offer(ticket(1), 0.0), Queued)
    pool.update(signal("e0", others_inflight=1), 0.1)
    assert owners(admission.ready(0.1)) == [1]


def test_nobody_waits_for_a_model_without_endpoints() -> None:
    admission, pool = authenticator(room=3)
    pool.update(signal("e0", excluded="cordoned"), 0.0)
    admission.ready(0.0)
    assert isinstance(admission.offer(ticket(1), 0.0), Admitted)  # to hear the pool's reason


def test_a_reload_keeps_those_that_wait_and_tells_those_of_a_model_that_went() -> None:
    admission, pool = authenticator(room=1, t=TenantConfig(max_inflight=1))
    admission.offer(ticket(1, "t"), 0.0)
    admission.offer(ticket(2, "t"), 0.0)
    model = pool.config
    config = Config(version=1, models={"m": model}, tenants={"t": TenantConfig(max_inflight=1)})
    kept = Admission(config, {"m": pool}, now_s=1.0, previous=admission)
    assert kept.waiting("m") == 1
    assert owners(kept.release(1, 1.1)) == [2]
    kept.offer(ticket(3, "t"), 1.2)
    other = Config(version=1, models={"n": model})
    gone = Admission(other, {"n": pool_of(model)}, now_s=2.0, previous=kept)
    ((lost, refused),) = gone.expire(2.0)
    assert (lost.owner, refused.status) == (3, 404)
    assert gone.release(2, 2.1) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "release", "expire", "ready"]),
        st.integers(0, 30),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 2),
        st.floats(0, 3),
    ),
    max_size=120,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(steps=STEPS)
def test_no_request_is_lost_or_let_in_twice(  # noqa: C901 - a model beside the thing itself
    steps: list[tuple[str, int, str, int, float]],
) -> None:
    limits = LimitsConfig(queue=5, queue_timeout_s=4.0)
    admission, _ = authenticator(room=3, limits=limits, a=TenantConfig(max_inflight=2))
    waiting: set[int] = set()
    inside: set[int] = set()
    now_s = 0.0

    def start(started: list[Ticket]) -> None:
        for one in started:
            waiting.remove(one.owner)
            inside.add(one.owner)

    def offer(number: int, tenant: str, priority: int) -> None:
        owner = 1000 + len(seen)
        seen.append(owner)
        verdict = admission.offer(ticket(owner, tenant, priority, tokens=number), now_s)
        if isinstance(verdict, Admitted):
            inside.add(owner)
        elif isinstance(verdict, Queued):
            waiting.add(owner)

    def release(owner: int) -> None:
        inside.discard(owner)
        waiting.discard(owner)
        start(admission.release(owner, now_s))

    seen: list[int] = []
    for do, number, tenant, priority, passed_s in steps:
        now_s += passed_s
        known = sorted(inside | waiting)
        if do == "offer":
            offer(number, tenant, priority)
        elif do == "release" and known:
            release(known[number % len(known)])
        elif do == "ready":
            start(admission.ready(now_s))
        for pushed, _ in admission.expire(now_s):
            waiting.discard(pushed.owner)
        assert len(inside) <= 3
        assert admission.waiting("m") == len(waiting) <= 5
    while inside:
        release(min(inside))
    assert not waiting
