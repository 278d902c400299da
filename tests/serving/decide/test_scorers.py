"""Policies on tables of candidates, and what every one of them must keep."""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.decide.loads import facts
from trainmesh.serving.decide.policies.affinity import home
from trainmesh.serving.decide.policies.cost import expected_ttfts_s
from trainmesh.serving.decide.policies.scorers import BUILT_IN, load_scorers
from trainmesh.serving.decide.types import NEVER_S, Context, RequestFacts, Row, stable_hash

CONTEXT = Context()


def row(index: int, **fields: float) -> Row:
    values: dict[str, float] = {
        "index": index,
        "key": stable_hash(b"e%d" % index) >> 31,
        "weight": 1.0,
        "rtt_s": 0.0,
        "bandwidth_bytes_per_s": 0.0,
        "derate": 1.0,
        "inflight": 0,
        "inflight_tokens": 0,
        "waiting_tokens": 0,
        "base_s": 0.01,
        "s_per_token": 1e-4,
        "cached_tokens": 0,
        "queued": 0,
        "running": 0,
        "kv_use": 0.0,
        "report_age_s": NEVER_S,
    }
    return Row(**{**values, **fields})  # type: ignore[arg-type]


def take(
    policy: str,
    rows: Sequence[Row],
    request: RequestFacts,
    context: Context = CONTEXT,
    draw: float = 0.5,
) -> int:
    scores = BUILT_IN[policy]().score(request, rows, context, draw)
    return rows[scores.index(min(scores))].index


ROWS = st.lists(
    st.builds(
        Row,
        index=st.integers(0, 20),
        key=st.integers(0, 2**32 - 1),
        weight=st.floats(0.01, 100),
        rtt_s=st.floats(0, 1),
        bandwidth_bytes_per_s=st.one_of(st.just(0.0), st.floats(1e3, 1e11)),
        derate=st.floats(0.01, 1),
        inflight=st.integers(0, 10_000),
        inflight_tokens=st.integers(0, 10**8),
        waiting_tokens=st.integers(0, 10**8),
        base_s=st.floats(0, 100),
        s_per_token=st.floats(1e-9, 1),
        cached_tokens=st.integers(0, 1000),
        queued=st.integers(0, 1000),
        running=st.integers(0, 1000),
        kv_use=st.floats(0, 1),
        report_age_s=st.sampled_from([0.0, 1.0, 100.0, NEVER_S]),
    ),
    min_size=1,
    max_size=9,
)
CONTEXTS = st.builds(
    Context,
    affinity_budget_s=st.floats(0.001, 10),
    rif_limit=st.floats(0, 1e9),
    ttft_s=st.floats(0, 10),
    tokens=st.floats(0, 1e6),
    prefix_pays=st.booleans(),
)
DRAWS = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("policy", sorted(BUILT_IN))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=ROWS, context=CONTEXTS, draw=DRAWS, tokens=st.integers(0, 10**6), session=st.binary())
def test_any_candidates_have_finite_scores_and_equal_ones_the_same(
    policy: str, rows: list[Row], context: Context, draw: float, tokens: int, session: bytes
) -> None:
    request = facts(prompt_tokens=tokens, nbytes=4 * tokens, session=session)
    scorer = BUILT_IN[policy]()
    scores = scorer.score(request, rows, context, draw)
    assert len(scores) == len(rows)
    assert all(abs(score) < float("inf") for score in scores)
    assert list(scorer.score(request, rows, context, draw)) == list(scores)


@pytest.mark.parametrize(
    ("policy", "better"),
    [
        ("least_requests", {"inflight": 3}),
        ("least_requests", {"inflight": 9, "weight": 3.0}),
        ("least_tokens", {"inflight": 9, "inflight_tokens": 10}),
        ("power_of_two", {"inflight": 3}),
        ("heuristic", {"inflight": 5, "queued": 0, "report_age_s": 1.0}),
        ("mesh", {"rtt_s": 0.0}),
        ("predictive", {"waiting_tokens": 0}),
        ("prequal", {"inflight": 2, "base_s": 0.02}),
        ("prefix", {"cached_tokens": 40}),
        ("hybrid", {"waiting_tokens": 0}),
        ("hybrid", {"derate": 1.0}),
        ("hybrid", {"bandwidth_bytes_per_s": 1e9}),
        ("hybrid", {"kv_use": 0.1}),
    ],
)
def test_the_better_of_two_is_taken(policy: str, better: dict[str, float]) -> None:
    worse = {
        "inflight": 5,
        "inflight_tokens": 900,
        "waiting_tokens": 400,
        "rtt_s": 0.0 if "rtt_s" not in better else 0.2,
        "derate": 0.5,
        "bandwidth_bytes_per_s": 1e4,
        "queued": 4,
        "kv_use": 0.9,
        "report_age_s": 1.0,
    }
    context = Context(rif_limit=4.0)
    rows = [row(0, **worse), row(1, **{**worse, **better})]
    assert take(policy, rows, facts(), context) == 1
    assert take(policy, rows[::-1], facts(), context) == 1


def test_round_robin_takes_the_first_or_goes_by_weight() -> None:
    assert take("round_robin", [row(2), row(0), row(1)], facts()) == 2
    rows = [row(0, weight=3.0), row(1)]
    taken = Counter(take("round_robin", rows, facts(), draw=i / 1000) for i in range(1000))
    assert taken == {0: 750, 1: 250}


def test_power_of_two_never_takes_the_most_loaded() -> None:
    rows = [row(i, inflight=i) for i in range(4)]
    taken = {take("power_of_two", rows, facts(), draw=i / 997) for i in range(997)}
    assert taken == {0, 1, 2}


def test_cost_counts_network_load_cache_queue_and_derate() -> None:
    request = facts(prompt_tokens=999, nbytes=4000)
    one = row(
        0,
        rtt_s=0.02,
        bandwidth_bytes_per_s=1e6,
        waiting_tokens=1000,
        inflight=2,
        inflight_tokens=1280,
        cached_tokens=500,
        derate=0.5,
        queued=4,
        report_age_s=1.0,
    )
    work = 1000 + 1000 + 8 * 2 + 1280 / 128 + (4 - 2) * 256
    network_s = 0.02 + 0.004
    full = network_s + (0.01 + 1e-4 * work) / 0.5
    cached = network_s + (0.01 + 1e-4 * (work - 500)) / 0.5
    assert expected_ttfts_s(request, [one], CONTEXT, cache=False) == pytest.approx([full])
    assert expected_ttfts_s(request, [one], CONTEXT, cache=True) == pytest.approx([cached])


def test_hot_endpoints_come_last_in_prequal_the_emptiest_of_them_first() -> None:
    context = Context(rif_limit=5.0)
    rows = [row(0, inflight=9, base_s=0.001), row(1, inflight=5, base_s=1.0), row(2, inflight=6)]
    assert take("prequal", rows, facts(), context) == 1
    assert take("prequal", [rows[0], rows[2]], facts(), context) == 2


def test_a_session_stays_until_it_costs_more_than_the_budget() -> None:
    request = facts(session=b"talk")
    context = Context(affinity_budget_s=0.1)
    rows = [row(i) for i in range(5)]
    place = home(request.session_key, rows)
    assert take("hybrid", rows, request, context) == place
    rows[place] = row(place, base_s=0.09)
    assert take("hybrid", rows, request, context) == place
    rows[place] = row(place, base_s=0.15)
    assert take("hybrid", rows, request, context) != place


def test_a_prefix_draws_a_prompt_only_while_that_pays() -> None:
    rows = [row(0), row(1, cached_tokens=45, waiting_tokens=100)]
    assert take("hybrid", rows, facts(), Context(prefix_pays=True)) == 1
    assert take("hybrid", rows, facts(), Context(prefix_pays=False)) == 0


def test_equal_costs_go_to_the_emptiest_and_then_by_chance() -> None:
    rows = [row(0, inflight=1, s_per_token=1e-6), row(1, s_per_token=1e-6)]
    assert {take("hybrid", rows, facts(), draw=i / 10) for i in range(10)} == {1}
    same = [row(i) for i in range(3)]
    taken = Counter(take("hybrid", same, facts(), draw=i / 300) for i in range(300))
    assert taken == {0: 100, 1: 100, 2: 100}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gone=st.integers(0, 7), sessions=st.lists(st.binary(min_size=1), min_size=1, max_size=20))
def test_only_sessions_of_the_one_that_goes_move(gone: int, sessions: list[bytes]) -> None:
    rows = [row(i, inflight=i) for i in range(8)]
    left = [r for r in rows if r.index != gone]
    for session in sessions:
        request = facts(session=session)
        before = rows[home(request.session_key, rows)].index
        after = left[home(request.session_key, left)].index
        assert before in (after, gone)


def test_homes_are_the_same_in_every_process_and_evenly_many() -> None:
    assert stable_hash(b"talk-1") == 7118615205726053575
    rows = [row(i) for i in range(4)]
    homes = Counter(home(facts(session=b"%d" % i).session_key, rows) for i in range(4000))
    assert all(900 < count < 1100 for count in homes.values())


def test_affinity_bounds_the_load_of_each() -> None:
    request = facts(session=b"hot")
    rows = [row(i) for i in range(4)]
    loads = [0] * 4
    for _ in range(100):
        rows = [row(i, inflight=loads[i]) for i in range(4)]
        loads[take("affinity", rows, request)] += 1
    assert max(loads) <= 1.25 * 100 / 4 + 1


def test_plug_ins_are_found_and_broken_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decide_plug_ins.py").write_text(
        "class Last:\n"
        "    name = 'last'\n"
        "    def score(self, facts, candidates, context, draw):\n"
        "        return [-c.index for c in candidates]\n"
        "def broken():\n"
        "    raise RuntimeError('no licence')\n"
    )
    info = tmp_path / "decide_plug_ins-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: decide-plug-ins\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[trainmesh.scorers]\n"
        "last = decide_plug_ins:Last\n"
        "broken = decide_plug_ins:broken\n"
        "empty = decide_plug_ins:dict\n"
        "gone = decide_plug_ins_that_are_not_there:Last\n"
        "hybrid = decide_plug_ins:Last\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    scorers, warnings = load_scorers()
    sys.modules.pop("decide_plug_ins", None)
    rows = [row(0), row(1)]
    assert list(scorers["last"].score(facts(), rows, CONTEXT, 0.0)) == [0, -1]
    assert set(scorers) == {*BUILT_IN, "last"}
    assert len(warnings) == 4
    assert any("broken" in line and "no licence" in line for line in warnings)
    assert any("hybrid" in line and "built in" in line for line in warnings)
    assert all("\n" not in line for line in warnings)


def test_the_entry_point_type_is_what_we_think() -> None:
    point = EntryPoint("x", "trainmesh.serving.decide.policies.hybrid:Hybrid", "trainmesh.scorers")
    assert point.load()().name == "hybrid"


def test_choices_of_all_policies_depend_on_nothing_but_arguments() -> None:
    rows = [row(i, inflight=i % 3, waiting_tokens=i * 10) for i in range(6)]
    request = facts(session=b"s")
    for policy in BUILT_IN:
        random.seed(1)
        one = take(policy, rows, request, draw=0.3)
        random.seed(2)
        assert take(policy, rows, request, draw=0.3) == one
